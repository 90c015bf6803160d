"""The start of a fine-tuning: the encoder of any model, and its head where the alphabet agrees."""

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.interop.open import open_model
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC

# What the encoder computes depends on; masks, dropout and losses are the training's
GEOMETRY = (
    "conv_channels conv_kernels conv_strides conv_bias extractor_norm num_layers embed_dim ffn_dim "
    "num_heads norm_first pos_conv_kernel pos_conv_groups quantize_inputs"
).split()


def load_pretrained(
    model: Wav2Vec2ForCTC, source: str, alphabet: Alphabet, normalize: bool
) -> list[str]:
    """Copy the encoder of the model that `source` names into `model`, and its output layer where it
    has one on the same alphabet; returns notes on what was done. Raises ConfigError where it is of
    another architecture than model.*, and what `open_model` does."""
    opened = open_model(source)
    _check_geometry(source, opened.module.config, model.config)
    continued = opened.alphabet is not None and opened.alphabet.agrees(alphabet)
    model.encoder.load_state_dict(opened.encoder.state_dict())
    if continued:
        assert isinstance(opened.module, Wav2Vec2ForCTC)
        model.token_projection.load_state_dict(opened.module.token_projection.state_dict())
    if opened.kind != "ctc":
        head = "a new output layer"
    elif continued:
        head = "its output layer is continued: the alphabet is the same"
    else:
        what = opened.alphabet and f"it is on another alphabet ({opened.alphabet})"
        head = f"its output layer is left behind: {what or 'its alphabet is not known'}"
    notes = [f"started from {opened.source} ({opened.kind}); {head}", *opened.notes]
    if opened.normalize is not None and opened.normalize != normalize:
        notes.append(
            f"{source} was trained with data.normalize={str(opened.normalize).lower()} but this "
            f"training has {str(normalize).lower()}: it will hear other audio"
        )
    return notes


def _check_geometry(source: str, found: Wav2Vec2Config, wanted: Wav2Vec2Config) -> None:
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in GEOMETRY]
    other = [(n, list(a) if isinstance(a, tuple) else a, b) for n, a, b in pairs if a != b]
    if other:
        has = ", ".join(f"{n} {a} (not {b})" for n, a, b in other)
        values = " ".join(f"model.{n}={str(a).lower().replace(' ', '')}" for n, a, _ in other)
        raise ConfigError(
            f"pretrained is {source!r}, of another architecture than model.*: it has {has}; "
            f"take a configuration of its size, or set {values}"
        )

"""Read folders of Hugging Face: pre-trained, CTC or an encoder, of any version of transformers."""

from pathlib import Path
from typing import Any

from torch import Tensor

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.alphabet_file import OURS, read_alphabet, vocabulary
from w2v2dist.interop.foreign import ForeignCheckpoint
from w2v2dist.interop.names import our_config, our_name
from w2v2dist.interop.weights import read_folder, read_json, renamed


def read_huggingface(source: str | Path, trust_pickle: bool = False) -> ForeignCheckpoint:
    """Read a Hugging Face folder: config.json, weights (safetensors or an older pytorch_model.bin,
    whole or in parts), its processor's settings and alphabet where they are there. Raises
    FileNotFoundError, and ValueError as `read_fairseq` does."""
    folder = Path(source)
    settings = read_json(folder / "config.json", "give the folder of a Hugging Face model")
    if settings.get("adapter_attn_dim"):
        raise ValueError(
            f"{folder} has adapters for single languages (MMS: adapter_attn_dim is "
            f"{settings['adapter_attn_dim']}), which this model has not: start from the "
            "pre-trained mms-300m or mms-1b, or fine-tune XLS-R"
        )
    config = our_config(settings, "huggingface", str(folder))
    weights = read_folder(folder, trust_pickle)
    if not any(name.startswith("wav2vec2.") for name in weights):  # an encoder alone
        weights = {f"wav2vec2.{name}": tensor for name, tensor in weights.items()}
    state = renamed(weights, lambda name: our_name(name, "huggingface"), str(folder))
    notes: list[str] = []
    head = state.get("token_projection.weight")
    return ForeignCheckpoint(
        source=str(folder),
        library="huggingface",
        state=state,
        config=config,
        normalize=_normalizes(folder),
        alphabet=None if head is None else _alphabet(folder, head, notes),
        notes=notes,
    )


def _normalizes(folder: Path) -> bool | None:
    """What the settings of the feature extractor say, in a file of its own or of the processor."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            values: Any = read_json(folder / name)
            values = values.get("feature_extractor", values if name.startswith("pre") else None)
            if isinstance(values, dict):
                stated = values.get("do_normalize", True)
                return stated is not None and str(stated).lower() not in ("false", "0")
    return None


def _alphabet(folder: Path, head: Tensor, notes: list[str]) -> Alphabet | None:
    """The vocabulary of the folder, for this output layer. Raises ValueError where they do not go
    together."""
    if not (folder / "vocab.json").is_file():
        notes.append("its alphabet is not known: vocab.json is missing")
        return None
    found = read_alphabet(folder / "vocab.json")
    if found.num_tokens != len(head):
        found = found.resized(len(head), str(folder))
        notes.append(f"vocab.json and the {len(head)} outputs differ in ids that no text has")
    if (folder / OURS).is_file():  # our own export also says how texts are read
        ours = read_alphabet(folder / OURS)
        known = (vocabulary(a).items() for a in (found, ours))
        return ours if next(known) == next(known) else found
    return found

"""Open a Transformer language model by its name: a run of ours, or a `.pt` of fairseq."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from w2v2dist import checkpoint
from w2v2dist.checkpoint import CheckpointError
from w2v2dist.config import ConfigError, from_dict
from w2v2dist.data.alphabet import DELIMITER
from w2v2dist.data.vocabulary import SPECIAL, TextUnits, Vocabulary, read_vocabulary
from w2v2dist.interop.fairseq import model_settings, plain, task_settings
from w2v2dist.interop.open import is_run
from w2v2dist.interop.weights import are_weights, read_file
from w2v2dist.model.language_model import LanguageModelConfig, TransformerLanguageModel

# Names of fairseq's parameters (below `decoder.`) and ours
_NAMES = (
    (r"embed_tokens\.embeddings\.(\d+)\.0\.weight", r"words.embedding_\1"),
    (r"embed_tokens\.embeddings\.(\d+)\.1\.weight", r"words.projection_\1"),
    (r"embed_tokens\.weight", "words.embedding_0"),
    (r"adaptive_softmax\.head\.class_proj\.weight", "words.class_weight"),
    (r"layers\.(\d+)\.self_attn\.([qkv]|out)_proj\.(.*)", r"layers.\1.attention.\2_proj.\3"),
    (
        r"layers\.(\d+)\.(?:self_attn_layer_norm|layer_norms\.0)\.(.*)",
        r"layers.\1.attention_norm.\2",
    ),
    (r"layers\.(\d+)\.fc1\.(.*)", r"layers.\1.ffn_in.\2"),
    (r"layers\.(\d+)\.fc2\.(.*)", r"layers.\1.ffn_out.\2"),
    (r"layers\.(\d+)\.final_layer_norm\.(.*)", r"layers.\1.final_norm.\2"),
    (r"layers\.(\d+)\.layer_norms\.2\.(.*)", r"layers.\1.final_norm.\2"),
)
# The names of tied weights in the softmax, and what they repeat
_TIED = (
    (r"output_projection\.weight", "words.embedding_0"),
    (r"adaptive_softmax\.head\.word_proj\.weight", "words.embedding_0"),
    (r"adaptive_softmax\.tail\.(\d+)\.0\.weight", "words.projection_{}"),
    (r"adaptive_softmax\.tail\.(\d+)\.2\.weight", "words.embedding_{}"),
)
_NO_WEIGHTS = (r"(.*\.)?version", r"(.*\.)?_float_tensor", r"embed_positions\.weights")
# What our model always is, and the weights do not show: another value is another architecture
_FIXED = {
    "decoder_normalize_before": True,
    "no_token_positional_embeddings": False,
    "no_scale_embedding": False,
    "add_bos_token": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedLanguageModel:
    """A language model in evaluation mode, its weights possibly mapped from its file, with what its
    ids mean."""

    module: TransformerLanguageModel
    vocabulary: Vocabulary
    source: Path  # the folder or file that was read
    notes: tuple[str, ...] = ()  # what was guessed

    @property
    def units(self) -> Literal["words", "tokens"]:
        """Whether it predicts words, or the tokens that an acoustic model spells them with."""
        return "words" if self.vocabulary.units == "words" else "tokens"


def open_language_model(
    source: str | Path, which: str | None = None, *, trust_pickle: bool = False
) -> OpenedLanguageModel:
    """The language model that `source` names: a run folder (its "best" or "latest" checkpoint as
    `which` says; default: the best where there is one), a step folder, or a `.pt` of fairseq with
    its dictionary beside it (dict.txt, or the file's name with .dict). Files that are more than
    data are read only with `trust_pickle`. Raises ValueError or CheckpointError with a remedy."""
    path = Path(source)
    if is_run(path) or (path / "meta.json").is_file():
        return _open_checkpoint(checkpoint.find(path, which))
    if path.is_file():
        return read_fairseq_lm(path, trust_pickle)
    raise ConfigError(
        f"{str(source)!r} is no language model: give a run folder (w2v2dist train configs/lm/…), a "
        "step folder, or a .pt of fairseq"
    )


def _open_checkpoint(folder: Path) -> OpenedLanguageModel:
    """The model of a step folder of ours."""
    meta = checkpoint.read_meta(folder)
    try:
        saved = meta["config"]
        if saved["task"] != "language_model":
            raise ConfigError(
                f"{folder} is a model of speech (task: {saved['task']}), no language model"
            )
        config = from_dict(LanguageModelConfig, saved["model"], "model.")
        vocabulary = Vocabulary.from_dict(meta["vocabulary"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}/meta.json does not say what is saved: {error!r}") from None
    values = checkpoint.read_parameters(folder)
    with torch.device("meta"):  # the values take the places of the parameters
        module = TransformerLanguageModel(config, len(vocabulary))
    checkpoint.load_into(module, values, str(folder))
    return OpenedLanguageModel(module=module.eval(), vocabulary=vocabulary, source=folder)


def read_fairseq_lm(path: Path, trust_pickle: bool = False) -> OpenedLanguageModel:
    """The model of a `.pt` of fairseq's TransformerLanguageModel, with old `args` or new `cfg`.
    Raises ValueError where it is another model, has no dictionary or another's."""
    content = read_file(path, trust_pickle)
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not are_weights(weights):
        raise ValueError(f"{path} is not a fairseq checkpoint: it has no weights under 'model'")
    top = plain(content.get("cfg") or content.get("args"))
    settings = model_settings(top)
    name = settings.get("_name") or settings.get("arch") or "transformer_lm"
    foreign = [n for n in weights if not n.startswith("decoder.")]
    if foreign or not str(name).startswith("transformer_lm"):
        of = f" and weights of more than a decoder ({foreign[0]}, …)" if foreign else ""
        raise ValueError(f"{path} is no Transformer language model: it has the name {name!r}{of}")
    config = our_lm_config(settings, str(path))
    state = _our_state(weights, str(path))
    vocabulary, notes = _dictionary(path, task_settings(top), _num_words(state))
    with torch.device("meta"):
        module = TransformerLanguageModel(config, len(vocabulary))
    if problem := "; ".join(_misfits(module.state_dict(), state)):
        raise ValueError(f"{path} does not fit its configuration ({problem})")
    floats = {n: tensor.detach().float() for n, tensor in state.items()}
    module.load_state_dict(floats, assign=True)
    return OpenedLanguageModel(
        module=module.eval(), vocabulary=vocabulary, source=path, notes=tuple(notes)
    )


def our_lm_config(settings: Mapping[str, Any], source: str) -> LanguageModelConfig:
    """fairseq's settings as ours. Raises ValueError that names what our model has not."""
    get = settings.get
    wrong = [
        f"{key} is {get(key)!r} but must be {value!r}"
        for key, value in _FIXED.items()
        if bool(get(key, value)) != value
    ]
    factors = {float(get(f"adaptive_{part}_factor") or 4) for part in ("input", "softmax")}
    cutoffs = {part: _cutoffs(get(f"adaptive_{part}_cutoff")) for part in ("input", "softmax")}
    if cutoffs["input"] != cutoffs["softmax"] or len(factors) > 1 or factors.pop() % 1:
        wrong.append("its clusters are not the same in input and softmax, or of no whole factor")
    if wrong:
        raise ValueError(
            f"{source} is of another architecture than our language model: {'; '.join(wrong)}"
        )
    values = {
        "num_layers": get("decoder_layers"),
        "embed_dim": get("decoder_embed_dim"),
        "ffn_dim": get("decoder_ffn_embed_dim"),
        "num_heads": get("decoder_attention_heads"),
    }
    if missing := [name for name, value in values.items() if value is None]:
        raise ValueError(f"{source} does not say its {', '.join(missing)}: it has no usable args")
    values |= {
        "dropout": get("dropout"),
        "attention_dropout": get("attention_dropout"),
        "activation_dropout": get("activation_dropout") or get("relu_dropout"),
        "activation": get("activation_fn"),
        "cutoffs": cutoffs["input"],
        "adaptive_factor": int(get("adaptive_input_factor") or 4),
    }
    try:
        return from_dict(LanguageModelConfig, {k: v for k, v in values.items() if v is not None})
    except ValueError as error:
        raise ValueError(f"the configuration in {source} cannot be used: {error}") from None


def _cutoffs(value: Any) -> list[int]:
    """fairseq writes "60000,160000"."""
    return [int(number) for number in re.findall(r"\d+", str(value or ""))]


def _our_state(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under our names. Raises ValueError for one that has no place here, and where the
    softmax's are not the input's."""
    state: dict[str, Tensor] = {}
    tied: list[tuple[str, str, Tensor]] = []
    strangers = []
    for full_name, tensor in _in_three(weights).items():
        name = full_name.removeprefix("decoder.")
        if any(re.fullmatch(pattern, name) for pattern in _NO_WEIGHTS):
            continue
        found = [re.sub(p, ours, name) for p, ours in _NAMES if re.fullmatch(p, name)]
        copies = [(m, ours) for p, ours in _TIED if (m := re.fullmatch(p, name))]
        if found:
            state[found[0]] = tensor
        elif copies:
            match, ours = copies[0]
            cluster = int(match[1]) + 1 if match.groups() else 0
            tied.append((full_name, ours.format(cluster), tensor))
        else:
            strangers.append(full_name)
    if strangers:
        raise ValueError(
            f"{source} has {', '.join(strangers[:5])}, which our language model has no place for"
        )
    for full_name, ours, tensor in tied:
        if ours in state and not torch.equal(state[ours], tensor):
            raise ValueError(
                f"{source} is of another architecture: {full_name} is not tied to the embeddings"
            )
    return state


def _in_three(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old versions kept the projections of queries, keys and values in one."""
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stem, joined, kind = name.rpartition("in_proj_")
        if joined:
            out |= {
                f"{stem}{q}_proj.{kind}": t for q, t in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            out[name] = tensor
    return out


def _num_words(state: Mapping[str, Tensor]) -> int:
    return sum(len(t) for n, t in state.items() if n.startswith("words.embedding_"))


def _dictionary(
    path: Path, task: Mapping[str, Any], num_words: int
) -> tuple[Vocabulary, list[str]]:
    """The dictionary beside the file, and what was guessed. Raises ValueError."""
    beside = (path.with_suffix(".dict"), path.with_suffix(".dict.txt"))
    places = [*beside, path.with_name(f"{path.name}.dict"), path.parent / "dict.txt"]
    if isinstance(task.get("data"), str):
        places.append(Path(task["data"]) / "dict.txt")
    found = next((place for place in places if _is_file(place)), None)
    if found is None:
        raise ValueError(
            f"{path} has {num_words} words but no dictionary: put it beside it, as dict.txt or "
            f"{path.with_suffix('.dict').name}"
        )
    vocabulary = read_vocabulary(found)
    if len(vocabulary) != num_words:
        raise ValueError(
            f"{found} has {len(vocabulary)} symbols (with fairseq's four) but {path} has "
            f"{num_words}: it is another model's dictionary"
        )
    units = _units(vocabulary)
    if units == "words":
        return vocabulary, []
    note = f"its symbols are taken for {units}: all but {DELIMITER} are single characters"
    return dataclasses.replace(vocabulary, units=units), [note]


def _units(vocabulary: Vocabulary) -> TextUnits:
    """fairseq's dictionaries do not say it: words, unless all are single and | is among them."""
    symbols = [s for s in vocabulary.symbols if s not in SPECIAL and not s.startswith("madeup")]
    single = all(len(symbol) == 1 for symbol in symbols)
    return "characters" if single and DELIMITER in symbols else "words"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # another's folder, or no path at all
        return False


def _misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What is missing, unexpected or of another shape."""
    shapes = [n for n in wanted if n in given and wanted[n].shape != given[n].shape]
    said = {
        "missing": wanted.keys() - given.keys(),
        "unexpected": given.keys() - wanted.keys(),
        "of another shape": set(shapes),
    }
    return [f"{what}: {', '.join(sorted(names)[:5])}" for what, names in said.items() if names]

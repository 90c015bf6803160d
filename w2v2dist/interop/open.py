"""Open a model by its name, whatever it is a folder, file or id of."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from w2v2dist import checkpoint
from w2v2dist.checkpoint import CheckpointError
from w2v2dist.config import ConfigError, from_dict
from w2v2dist.data.alphabet import Alphabet, alphabet
from w2v2dist.data.text import TextConfig
from w2v2dist.interop.fairseq import read_fairseq
from w2v2dist.interop.foreign import CALLED, ForeignCheckpoint, Kind, Model
from w2v2dist.interop.hub import fetch, is_hub_id
from w2v2dist.interop.huggingface import read_huggingface
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining, Wav2Vec2Model

FOREIGN = "Hugging Face folder or hub id, or .pt of fairseq"
MODEL = f"run folder, step folder, {FOREIGN}"
TRUST = (
    "read files that hold more than data. This runs code that came with the file: only for files "
)
TRUST += "from people you trust"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedModel:
    """A model in evaluation mode, its weights possibly mapped from its file, with what its audio
    and its outputs mean."""

    module: Model
    kind: Kind  # pretrained (with its quantizer), ctc, or encoder (without a head)
    alphabet: Alphabet | None  # of a CTC model; None where its files do not say
    normalize: bool | None  # whether its audio has zero mean and unit variance; None: unknown
    source: Path  # the folder or file that was read
    notes: tuple[str, ...] = ()  # what was filled in, guessed or left behind

    @property
    def encoder(self) -> Wav2Vec2Model:
        """The body that every kind has."""
        return self.module if isinstance(self.module, Wav2Vec2Model) else self.module.encoder

    def recogniser(self) -> tuple[Wav2Vec2ForCTC, Alphabet, bool]:
        """The module, its alphabet and normalisation, of a model that can be transcribed with.
        Raises ConfigError of another, and where its files do not say both."""
        if self.kind != "ctc" or not isinstance(self.module, Wav2Vec2ForCTC):
            raise ConfigError(
                f"{self.source} is {CALLED[self.kind]}: it has no output layer to transcribe with. "
                f"Fine-tune it first (w2v2dist train configs/finetune/… pretrained={self.source})"
            )
        if self.alphabet is None or self.normalize is None:
            what = "alphabet is" if self.alphabet is None else "normalisation of audio is"
            raise ConfigError(
                f"{self.source}: its {what} not known ({'; '.join(self.notes) or 'no file says'}): "
                "import it with --config, which can say it"
            )
        return self.module, self.alphabet, self.normalize


def open_model(
    source: str | Path, which: str | None = None, *, trust_pickle: bool = False
) -> OpenedModel:
    """The model that `source` names: a run folder (its "best" or "latest" checkpoint as `which`
    says; default: the best where there is one), a step folder, a Hugging Face folder, an id
    `org/name` of the Hugging Face hub, or a `.pt` of fairseq. Files that are more than data are
    read only with `trust_pickle`. Raises ValueError or CheckpointError that name the remedy."""
    path = Path(source)
    if is_run(path) or (path / "meta.json").is_file():
        return _open_checkpoint(checkpoint.find(path, which))
    foreign = read_foreign(source, trust_pickle)
    return OpenedModel(
        module=foreign.model(),
        kind=foreign.kind,
        alphabet=foreign.alphabet,
        normalize=foreign.normalize,
        source=Path(foreign.source),
        notes=tuple(foreign.notes),
    )


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, not a Hugging Face model's that has such files too."""
    ours = (path / "config.yaml").is_file() or (path / "checkpoints").is_dir()
    return ours and not (path / "config.json").is_file()


def read_foreign(source: str | Path, trust_pickle: bool = False) -> ForeignCheckpoint:
    """Read another library's checkpoint. Raises ValueError where it is none."""
    path, name = Path(source), str(source).rstrip("/")
    if path.is_dir():
        if is_run(path) or (path / "meta.json").is_file():
            raise ConfigError(f"{path} is a run already: name it as it is")
        return read_huggingface(path, trust_pickle)
    if path.is_file():
        if path.suffix in (".safetensors", ".bin"):
            raise ConfigError(f"{path} is the file of a model: give its folder, {path.parent}")
        return read_fairseq(path, trust_pickle)
    beside = ""
    if is_hub_id(name):
        if not path.parent.is_dir():
            return read_huggingface(fetch(name, trust_pickle), trust_pickle)
        beside = f" (a folder {path.parent} is here, so it was not looked for on the hub)"
    raise ConfigError(f"{name!r} does not exist{beside}: give a {MODEL}")


def _open_checkpoint(folder: Path) -> OpenedModel:
    """The model of a step folder of ours."""
    meta = checkpoint.read_meta(folder)
    try:
        saved = meta["config"]
        if saved["task"] == "language_model":
            raise ConfigError(
                f"{folder} is a language model: it knows no audio. Give it where a language model "
                "is asked for (in Python open_language_model)"
            )
        if saved["task"] == "unsupervised":
            raise ConfigError(
                f"{folder} is a generator of wav2vec-U: it hears features, no audio. Read with it "
                "by `w2v2dist unsupervised decode`, or label recordings (`unsupervised label`) and "
                "train a model of audio on them"
            )
        config, data = from_dict(Wav2Vec2Config, saved["model"], "model."), saved["data"]
        kind: Kind = meta.get("kind") or ("ctc" if saved["task"] == "finetune" else "pretrained")
        spelled: Alphabet | None = None
        normalize = bool(data["normalize"])
        if kind == "ctc" and "alphabet" in meta:
            spelled = Alphabet.from_dict(meta["alphabet"])
        elif kind == "ctc":  # of an older version
            spelled = alphabet(data["tokens"], from_dict(TextConfig, data.get("text") or {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}/meta.json does not say what is saved: {error!r}") from None
    values = checkpoint.read_parameters(folder)
    with torch.device("meta"):  # the values take the places of the parameters
        module: Model
        if kind == "ctc":
            outputs = values["token_projection.bias"].numel()
            module = Wav2Vec2ForCTC(config, outputs)
            if spelled is not None and spelled.num_tokens != outputs:
                raise CheckpointError(
                    f"{folder} has {outputs} outputs but its alphabet {spelled.num_tokens} "
                    "symbols: its meta.json is another model's"
                )
        else:
            module = Wav2Vec2Model(config) if kind == "encoder" else Wav2Vec2ForPretraining(config)
    checkpoint.load_into(module, values, str(folder))
    return OpenedModel(
        module=module.eval(),
        kind=kind,
        alphabet=spelled,
        normalize=normalize,
        source=folder,
    )


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and how it is opened, for `opened_from`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    which = "of a run folder (default: best, else latest)"
    add("--checkpoint", choices=["best", "latest"], help=which)
    add("--trust-pickle", action="store_true", help=TRUST)


def opened_from(args: argparse.Namespace) -> OpenedModel:
    """The model that the arguments of `model_arguments` name."""
    return open_model(args.model, args.checkpoint, trust_pickle=args.trust_pickle)

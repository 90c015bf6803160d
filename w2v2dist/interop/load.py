"""Read checkpoints of other libraries."""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from w2v2dist.data.alphabet import alphabet
from w2v2dist.interop.names import Library, fairseq_name, our_config, our_name, their_name
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining, Wav2Vec2Model

TaskName = Literal["pretrain", "finetune"]
Model = Wav2Vec2ForPretraining | Wav2Vec2ForCTC
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignCheckpoint:
    """Weights under our names (unknown ones under their own) and the settings that came along; None
    where the checkpoint does not say, or where its alphabet (`tokens`) is not known to be ours."""

    source: str
    library: Library
    state: dict[str, Tensor]
    config: Wav2Vec2Config | None = None
    normalize: bool | None = None
    tokens: str | None = None

    @property
    def task(self) -> TaskName:
        """Whether it is a pre-trained model or one fine-tuned with CTC."""
        return "finetune" if "token_projection.weight" in self.state else "pretrain"

    def model(self, config: Wav2Vec2Config | None = None, task: TaskName | None = None) -> Model:
        """The model in evaluation mode. `config` replaces the one that came along; `task` refuses a
        model of the other kind. Raises ValueError that lists what does not fit."""
        config = self.known(config)
        if (task or self.task) == "pretrain":
            return self.fill(Wav2Vec2ForPretraining(config), config).eval()
        outputs = len(self.state.get("token_projection.weight", [0]))
        return self.fill(Wav2Vec2ForCTC(config, outputs), config).eval()

    def known(self, config: Wav2Vec2Config | None) -> Wav2Vec2Config:
        """`config`, else the one that came along. Raises ValueError where there is none."""
        if known := config or self.config:
            return known
        raise ValueError(
            f"{self.source} carries no configuration: pass config=Wav2Vec2Config(…) "
            "(w2v2dist import: --config FILE.yaml)"
        )

    def fill(self, model: M, config: Wav2Vec2Config) -> M:
        """Copy the weights into `model`. Raises ValueError that lists what does not fit."""
        wanted, given = model.state_dict(), dict(self.state)
        if self.library == "fairseq" and config.conv_channels == config.embed_dim:
            # fairseq leaves the projection out where it changes no width
            given.setdefault("encoder.feature_projection.weight", torch.eye(config.embed_dim))
            given.setdefault("encoder.feature_projection.bias", torch.zeros(config.embed_dim))
        unmasked = config.mask_prob == config.channel_mask_prob == 0
        if self.library == "torchaudio" or (self.library == "huggingface" and unmasked):
            given.setdefault("encoder.mask_embedding", torch.zeros(config.embed_dim))
        for name in wanted.keys() & given.keys():  # codebooks are (1, G * V, D) elsewhere
            if name.endswith("codebooks") and given[name].numel() == wanted[name].numel():
                given[name] = given[name].view(wanted[name].shape)

        def theirs(name: str) -> str:
            return their_name(name, self.library, config, self.task == "finetune") or name

        shapes = [(n, tuple(given[n].shape), tuple(wanted[n].shape)) for n in wanted if n in given]
        problems = {
            "missing": [theirs(n) for n in wanted if n not in given],
            "unexpected": [theirs(n) for n in given if n not in wanted],
            "of another shape": [f"{theirs(n)} {a}, not {b}" for n, a, b in shapes if a != b],
        }
        if any(problems.values()):
            shown = {k: ", ".join(sorted(names)[:10]) for k, names in problems.items() if names}
            more = {k: f" and {len(v) - 10} more" for k, v in problems.items() if len(v) > 10}
            text = "; ".join(f"{k}: {names}{more.get(k, '')}" for k, names in shown.items())
            head = "token_projection.weight"
            if (head in wanted) == (head in given):
                what, remedy = "does not fit its configuration", "give the right one with --config"
            else:
                kinds = ("a pre-trained model", "a model fine-tuned with CTC")
                what = f"is {kinds[head in given]} where {kinds[head in wanted]} is needed"
                remedy = f"give another, or take it as it is with --task {self.task}"
            raise ValueError(f"{self.source} {what} ({text}): {remedy}")
        model.load_state_dict(given)
        return model


def read_fairseq(
    source: str | Path | Mapping[str, Any], trust_pickle: bool = False
) -> ForeignCheckpoint:
    """Read a `.pt` of fairseq, pre-trained or CTC, with old `args` or new `cfg`. A mapping is the
    content of one, or its weights alone. Raises ValueError where a file is another, damaged, or
    readable only by running its code (`trust_pickle` allows it)."""
    if isinstance(source, Mapping):
        name, content = "the mapping", source if "model" in source else {"model": source}
    else:
        name, content = str(source), _read(Path(source), trust_pickle)
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not _are_weights(weights):
        raise ValueError(f"{name} is not a fairseq checkpoint: it has no weights under 'model'")
    top = _plain(content.get("cfg") or content.get("args"))
    settings = _plain(top.get("model", top))
    if inner := _plain(settings.get("w2v_args")):
        # fine-tuned: the settings of the pre-training, and what replaced them
        over = {"encoder_layerdrop": settings.get("layerdrop"), **settings}
        settings = _plain(inner.get("model", inner))
        settings |= {k: v for k, v in over.items() if k in settings and v is not None}
    task = top if isinstance(top.get("task"), str) else _plain(top.get("task"))
    state = {fairseq_name(n): t for n, t in weights.items()}
    outputs = len(state.get("token_projection.weight", []))
    letters = task.get("labels") == "ltr" and outputs == alphabet("letters").num_tokens
    return ForeignCheckpoint(
        source=name,
        library="fairseq",
        state=state,
        config=our_config(settings, "fairseq", name) if "conv_feature_layers" in settings else None,
        normalize=bool(task.get("normalize", False)) if task else None,
        tokens="letters" if letters else None,
    )


def read_huggingface(source: str | Path, trust_pickle: bool = False) -> ForeignCheckpoint:
    """Read a Hugging Face folder: config.json, model.safetensors or an older pytorch_model.bin.
    Raises FileNotFoundError, and ValueError as `read_fairseq` does."""
    folder = Path(source)
    settings = _read_json(folder / "config.json", "give the folder of a Hugging Face model")
    names = ("model.safetensors", "pytorch_model.bin")
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(names)}")
    if not _are_weights(weights := _read(path, trust_pickle)):
        raise ValueError(f"{path} holds no mapping of names to weights")
    optional = [folder / "vocab.json", folder / "preprocessor_config.json"]
    ids, processing = (_read_json(path) if path.exists() else None for path in optional)
    alphabets = [n for n in ("letters", "phones") if ids == alphabet(n).ids]
    return ForeignCheckpoint(
        source=str(folder),
        library="huggingface",
        state={our_name(n, "huggingface"): t for n, t in weights.items()},
        config=our_config(settings, "huggingface", str(folder)),
        normalize=None if processing is None else bool(processing.get("do_normalize", True)),
        tokens=alphabets[0] if alphabets else None,
    )


def load_fairseq(
    source: str | Path | Mapping[str, Any],
    config: Wav2Vec2Config | None = None,
    *,
    task: TaskName | None = None,
    trust_pickle: bool = False,
) -> Model:
    """The model of a fairseq checkpoint (a file, its content, or its weights alone).

    `config` is needed where the checkpoint carries none; with `task` a model of the other kind is
    refused. Raises ValueError that lists what does not fit, or says why a file cannot be read.
    """
    return read_fairseq(source, trust_pickle).model(config, task)


def load_huggingface(
    source: str | Path,
    config: Wav2Vec2Config | None = None,
    *,
    task: TaskName | None = None,
    trust_pickle: bool = False,
) -> Model:
    """The model of a Hugging Face folder; arguments and errors as in `load_fairseq`."""
    return read_huggingface(source, trust_pickle).model(config, task)


def load_torchaudio(
    path: str | Path, config: Wav2Vec2Config | None = None
) -> Wav2Vec2ForCTC | Wav2Vec2Model:
    """The CTC model, or the body where there is no output layer, of a torchaudio state dict, with
    `config` or the arguments in PATH.json. torchaudio has no mask embedding: it is 0. Raises
    ValueError as `load_fairseq` does."""
    path = Path(path)
    arguments = path.with_name(path.name + ".json")
    if config is None and arguments.exists():
        config = our_config(_read_json(arguments), "torchaudio", str(arguments))
    weights = _read(path, False)
    if not _are_weights(weights):
        raise ValueError(f"{path} holds no state dict of torchaudio: it maps no names to weights")
    state = {our_name(n, "torchaudio"): t for n, t in weights.items()}
    foreign = ForeignCheckpoint(source=str(path), library="torchaudio", state=state, config=config)
    if foreign.task == "finetune":
        return foreign.model()  # type: ignore[return-value]
    config = foreign.known(None)
    body = Wav2Vec2Model(config)
    foreign.fill(nn.ModuleDict({"encoder": body}), config)
    return body.eval()


def _plain(section: Any) -> dict[str, Any]:
    """A section of fairseq's settings: an argparse.Namespace in older files, a mapping in newer."""
    section = vars(section) if isinstance(section, argparse.Namespace) else section or {}
    if not isinstance(section, Mapping):
        raise ValueError(f"{section!r} stands where fairseq's settings were expected")
    return dict(section)


def _are_weights(content: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether it maps names to tensors."""
    return isinstance(content, Mapping) and all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items()
    )


def _read_json(path: Path, remedy: str = "fetch it again") -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: {remedy}") from None
    except ValueError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).split("\n", 1)[0] or type(error).__name__
    return ValueError(
        f"{path} is truncated, damaged or no checkpoint ({reason}): compare its size with the "
        "source's and fetch it again"
    )


def _read(path: Path, trust: bool) -> Any:
    """What a file holds, read without running code unless trusted. Raises ValueError that says why
    not, and what the risk is."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: give a checkpoint file") from None
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} needs the package {error.name}: install it, or convert the file where it is"
        ) from None
    except Exception as error:  # of many types: the content is not ours
        stranger = re.search(r"GLOBAL (\S+)", str(error))
        if stranger is None or trust:
            raise _damaged(path, error) from None
        raise ValueError(
            f"{path} holds an object of the class {stranger[1]}, not only data: to read it is to "
            "run code that came with the file, with all your rights. Only if you trust its makers "
            "and the way it came to you: --trust-pickle (trust_pickle=True)"
        ) from None

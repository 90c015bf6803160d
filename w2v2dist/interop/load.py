"""The models of other libraries' checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2v2dist.interop.fairseq import read_fairseq
from w2v2dist.interop.foreign import ForeignCheckpoint, Model, TaskName
from w2v2dist.interop.huggingface import read_huggingface
from w2v2dist.interop.names import our_config, our_name
from w2v2dist.interop.weights import are_weights, read_file, read_json
from w2v2dist.model import Wav2Vec2Config


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


def load_torchaudio(path: str | Path, config: Wav2Vec2Config | None = None) -> Model:
    """The CTC model, or the body where there is no output layer, of a torchaudio state dict, with
    `config` or the arguments in PATH.json. torchaudio has no mask embedding: it is 0. Raises
    ValueError as `load_fairseq` does."""
    path = Path(path)
    arguments = path.with_name(path.name + ".json")
    if config is None and arguments.exists():
        config = our_config(read_json(arguments), "torchaudio", str(arguments))
    weights = read_file(path, False)
    if not are_weights(weights):
        raise ValueError(f"{path} holds no state dict of torchaudio: it maps no names to weights")
    state = {our_name(n, "torchaudio"): t for n, t in weights.items()}
    read = ForeignCheckpoint(source=str(path), library="torchaudio", state=state, config=config)
    return read.model()

"""Open a model by its name, whatever it is a folder or file of."""

from dataclasses import dataclass
from pathlib import Path

from w2v2dist import checkpoint
from w2v2dist.config import from_dict
from w2v2dist.data.alphabet import Alphabet, alphabet
from w2v2dist.interop.load import Model
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model in evaluation mode with what its audio and its outputs mean."""

    module: Model
    alphabet: Alphabet | None  # of a CTC model
    normalize: bool  # whether its audio has zero mean and unit variance
    tokens: str
    source: Path  # the step folder


def open_model(source: str | Path, which: str | None = None) -> OpenedModel:
    """The model of a step folder, or of a run folder: its "best" or "latest" checkpoint (default:
    the best where there is one). Raises CheckpointError."""
    folder = checkpoint.find(Path(source), which)
    saved = checkpoint.read_meta(folder)["config"]
    config, data = from_dict(Wav2Vec2Config, saved["model"], "model."), saved["data"]
    letters = alphabet(data["tokens"]) if saved["task"] == "finetune" else None
    module: Model = Wav2Vec2ForPretraining(config)
    if letters is not None:
        module = Wav2Vec2ForCTC(config, letters.num_tokens)
    checkpoint.load_into(module, checkpoint.read_parameters(folder), str(folder))
    return OpenedModel(module.eval(), letters, data["normalize"], data["tokens"], folder)

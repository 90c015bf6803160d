"""A trained generator of a run folder: what decoding and choosing read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError, diff, from_dict
from w2v2dist.unsupervised.config import UnsupervisedConfig
from w2v2dist.unsupervised.feature_store import FeatureStore
from w2v2dist.unsupervised.gan import GENERATOR, read_batch
from w2v2dist.unsupervised.gan_source import ValidationBatches
from w2v2dist.unsupervised.generator import Generator


@dataclass(frozen=True, slots=True)
class Trained:
    """A generator in evaluation mode, and what its weights mean nothing without."""

    folder: Path  # the step folder
    generator: Generator
    symbols: list[str]  # the special ones first, <SIL> last
    features: dict[str, Any]  # "dim", and what the frames were made by
    config: UnsupervisedConfig

    def check(self, store: FeatureStore) -> None:
        """Raise ConfigError for features of another kind than it was trained on. Segments may be
        read by what was trained on pairs of them, as version 1 is in a search."""
        given = {"dim": store.dim, **store.made_by}
        if (self.features.get("stage"), given.get("stage")) == ("pairs", "segments"):
            given["stage"] = "pairs"
        for name, (ours, theirs) in diff(self.features, given).items():
            raise ConfigError(
                f"{self.folder} was trained on features with {name} {ours}, but "
                f"those of {store.folder} have {theirs}: it can only read features that "
                "were made as those of its training"
            )

    def read(self, store: FeatureStore, batch_size: int = 64) -> list[list[int]]:
        """The joined symbols of every utterance, in the order of the store. Raises ConfigError for
        features of another kind."""
        self.check(store)
        batches, out = ValidationBatches(store), list[list[int]]()
        with torch.no_grad():
            for first in range(0, len(store), batch_size):
                ids = range(first, min(first + batch_size, len(store)))
                out += read_batch(self.generator, batches[ids])
        return out


def check_trained(path: Path, what: str = "a run of task unsupervised") -> None:
    """Raise ConfigError where a path cannot be a run folder or a step folder; `what` is asked for.
    A run that has saved nothing passes."""
    if (path / "meta.json").is_file() or (path / "checkpoints").is_dir():
        return
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give {what}")
    runs = sorted(found.parent.name for found in path.glob("*/config.yaml"))
    if runs:
        raise ConfigError(
            f"{path} holds {len(runs)} runs ({runs[0]}, …): give one of them; `w2v2dist "
            f"unsupervised select {path}` chooses"
        )
    if (path / "config.yaml").is_file():
        raise ConfigError(f"{path} has not saved a checkpoint yet: let it train first")
    raise ConfigError(f"{path} is something else: give {what}")


def open_trained(run_or_step: Path, symbols: list[str] | None = None) -> Trained:
    """The best checkpoint of a run folder, or the step folder itself. With `symbols`, those of a
    text: another phone set is refused. Raises ConfigError or CheckpointError."""
    check_trained(run_or_step)
    folder = checkpoint.find(run_or_step, None)
    meta = checkpoint.read_meta(folder)
    try:
        task = (meta.get("config") or {}).get("task")
        if task == "unsupervised":
            own, features = [*meta["phones"]["symbols"]], {**meta["features"]}
            dim = int(features["dim"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(
            f"{folder / 'meta.json'} is damaged ({what}): give another checkpoint of the run "
            "(RUN/checkpoints/step_…), or train again"
        ) from None
    if task != "unsupervised":
        raise ConfigError(
            f"{run_or_step} is no run of task unsupervised: give the folder of such a training"
        )
    config = from_dict(UnsupervisedConfig, meta["config"])
    if symbols is not None and symbols != own:
        other = sorted({*own} ^ {*symbols})
        what = f"only one of them has {' '.join(other[:8])}" if other else "their order differs"
        raise ConfigError(
            f"{folder} was trained with {len(own)} symbols, but {len(symbols)} others are given "
            f"({what}): use the text of its training, or train anew with this one"
        )
    num_targets = config.model.num_targets if config.losses.auxiliary_weight else 0
    generator = Generator(config.model.generator, dim, len(own), num_targets)
    values = {
        name.removeprefix(f"{GENERATOR}."): value
        for name, value in checkpoint.read_parameters(folder).items()
        if name.startswith(f"{GENERATOR}.")
    }
    checkpoint.load_into(generator, values, str(folder))
    return Trained(folder, generator.eval(), own, features, config)

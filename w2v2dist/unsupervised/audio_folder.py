"""The folder of `w2v2dist unsupervised audio`: which stores it needs, what of them is there, and
how much disk they take."""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from w2v2dist.config import ConfigError, diff, to_dict
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.runtime.distributed import World
from w2v2dist.unsupervised import mfcc_targets
from w2v2dist.unsupervised.audio_config import FRAMES, MFCC, SEGMENTS, TRAIN, AudioConfig
from w2v2dist.unsupervised.features import BlockFeatures
from w2v2dist.unsupervised.fitted import Fitted
from w2v2dist.unsupervised.store_writer import FeatureStoreWriter

ABOUT = "audio.json"
SPARE = 1 << 26  # bytes that stay free: a disk filled to the brim would stop more than this


@dataclass(frozen=True, kw_only=True)
class AudioFolder:
    """The output of one model and one configuration."""

    path: Path
    config: AudioConfig
    features: BlockFeatures
    source: str  # of the model, for people

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """What tells features of one kind from others. Settings of the other version are not in."""
        config = to_dict(self.config)
        unused = "num_targets" if self.config.version == 1 else "num_clusters pca_dim"
        besides = [*unused.split(), "segments"]
        kept = {k: v for k, v in config.items() if k not in besides}
        return {"model": self.features.fingerprint, **kept}

    def check(self) -> None:
        """Raise ConfigError where the folder has something else, or features of other settings."""
        made(self.path, "--output")
        about = self.path / ABOUT
        if not about.is_file():
            if strange := sorted(p.name for p in self.path.iterdir() if p.name != "lock"):
                raise ConfigError(
                    f"--output {self.path} has other things ({strange[0]}): choose a folder of its "
                    "own"
                )
            with atomic(about) as file:
                content = {"made_by": self.made_by, "model": self.source}
                file.write(json.dumps(content, indent=1).encode())
            return
        try:
            there = dict(json.loads(about.read_text(encoding="utf-8")))["made_by"]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{about} cannot be read ({error}): remove {self.path}") from None
        differ = diff(there, self.made_by)
        for name in sorted(differ, key=lambda name: name != "version"):  # the rest follows from it
            before, now = differ[name]
            raise ConfigError(
                f"--output {self.path} has features of other settings ({name} is {before} there "
                f"and {now} now): choose another folder, or give the same settings"
            )

    def fitted(self, train: ShardIndex | None) -> Fitted | None:
        """What was fitted on the training set before. Raises ConfigError where it was fitted on
        another one, or there is none and none can be made."""
        fitted = Fitted.load(self.path)
        if fitted is None and train is None:
            raise ConfigError(
                f"{self.path} has no clusters of a training set yet, and a set needs those of the "
                "training set: name it with --data"
            )
        if fitted and train and fitted.about["made_by"]["data"] != train.fingerprint:
            raise ConfigError(
                f"the clusters in {self.path} are those of another training set than --data "
                f"{train.folders}: choose another folder, or leave --data out to add a set"
            )
        return fitted

    def frames(self, index: ShardIndex, name: str) -> FeatureStoreWriter:
        """Version 1: the model's frames of a split."""
        return self._writer(self.path / FRAMES / name, self.features.dim, "frames", index)

    def mfccs(self, index: ShardIndex) -> FeatureStoreWriter:
        """Version 2: the MFCCs of the training set."""
        return self._writer(self.path / MFCC / TRAIN, mfcc_targets.DIM, "mfcc", index)

    def features_of(self, index: ShardIndex, name: str, fitted: Fitted) -> FeatureStoreWriter:
        """What is trained on: pairs of segments, or the frames with targets."""
        if self.config.version == 1:
            return self._writer(self.path / name, self.config.pca_dim, "pairs", index, fitted)
        return self._writer(self.path / name, self.features.dim, "frames", index, fitted)

    def segments(self, index: ShardIndex, name: str, fitted: Fitted) -> FeatureStoreWriter:
        """Version 1: segments before they are paired, which a search reads."""
        path = self.path / SEGMENTS / name
        return self._writer(path, self.config.pca_dim, "segments", index, fitted)

    def is_whole(self, name: str) -> bool:
        """Whether all of a split was made."""
        made = [name, *[f"{SEGMENTS}/{name}"] * self.config.segments]
        return all((self.path / one / "store.json").is_file() for one in made)

    def _writer(
        self, path: Path, dim: int, stage: str, index: ShardIndex, fitted: Fitted | None = None
    ) -> FeatureStoreWriter:
        made_by = {**self.made_by, "stage": stage}
        if fitted is not None:
            made_by["fitted"] = fitted.fingerprint
        known = {"mfcc": 100.0, "pairs": None, "segments": None}
        rate: float | None = known.get(stage, self.features.rate_hz)
        meta = {"made_by": made_by, "data": index.fingerprint, "rate_hz": rate}
        return FeatureStoreWriter(path, dim, self.config.dtype, meta)

    def needed_bytes(self, indices: dict[str, ShardIndex], has_fitted: bool) -> int:
        """The most that is still to be written for these splits: were there no silence, and all
        frames segments of their own."""
        size = np.dtype(self.config.dtype).itemsize
        total = 0
        for name, index in indices.items():
            if self.is_whole(name):
                continue
            seconds = float(np.sum(index.num_samples, dtype=np.int64)) / SAMPLE_RATE
            frames = seconds * self.features.rate_hz * size
            first = self.path / FRAMES / name if self.config.version == 1 else self.path / name
            total += max(0, round(frames * self.features.dim) - _written(first))
            if self.config.version == 1:
                pairs = round(frames / 2 * self.config.pca_dim)
                total += max(0, pairs - _written(self.path / name))
                if self.config.segments:
                    total += max(0, 2 * pairs - _written(self.path / SEGMENTS / name))
            elif name == TRAIN and not has_fitted:
                mfccs = round(100 * seconds * size * mfcc_targets.DIM)
                total += max(0, mfccs - _written(self.path / MFCC / TRAIN))
        return total

    def check_disk(self, needed: int) -> str:
        """How much disk is needed and free, in words. Raises ConfigError where it is too little."""
        free = shutil.disk_usage(self.path).free
        words = f"{needed / 1e9:.3g} GB of disk at most, {free / 1e9:.3g} GB are free"
        if free < needed + SPARE:
            raise ConfigError(
                f"--output {self.path} needs {words}: free some, choose another disk, or give "
                "fewer shards"
            )
        return words


def one_after_the_other(world: World, make: Any) -> FeatureStoreWriter:
    """A writer in every process, the first one's before the others': it lays the folder out."""
    if world.is_main:
        writer: FeatureStoreWriter = make()
    world.barrier()
    if not world.is_main:
        writer = make()
    return writer


def _written(path: Path) -> int:
    """Bytes of a store that are there, finished or in parts."""
    aside = path.with_name(f".{path.name}.parts")
    files = (p for folder in (path, aside) if folder.is_dir() for p in folder.rglob("*"))
    return sum(p.stat().st_size for p in files if p.suffix in (".npy", ".frames"))

"""Settings of `w2v2dist unsupervised audio`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from w2v2dist.config import ConfigError, at_least
from w2v2dist.unsupervised.silence import DETECTORS, Detector
from w2v2dist.unsupervised.store_writer import Dtype

TRAIN = "train"  # the split that all is fitted on
FRAMES, MFCC = "frames", "mfcc"  # folders of what lies between
SEGMENTS = "segments"  # folder of what version 1 reads with a language model
RESERVED = (TRAIN, FRAMES, MFCC, SEGMENTS)
NAME = re.compile(r"[\w+][\w.+-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioConfig:
    """What is made of audio. Version 1: frames of 20 ms, of them segments of about 70 ms, after
    PCA; version 2: the frames themselves, with targets. Defaults are the papers'."""

    version: Literal[1, 2] = 2
    block: int = 15  # 1: the first
    silence: Detector = "webrtc"
    num_clusters: int = 128  # of version 1, of frames
    pca_dim: int = 512  # of version 1
    num_targets: int = 64  # of version 2: clusters of MFCCs
    max_frames: int = 1_000_000  # that clusters are found in; of more, a sample
    seed: int = 0
    dtype: Dtype = "float16"
    segments: bool = False  # of version 1: kept before they are paired, too, for a search

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"version is {self.version} but must be 1 or 2")
        if self.silence not in DETECTORS:
            raise ValueError(f"silence is {self.silence} but must be {', '.join(DETECTORS)}")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"dtype is {self.dtype} but must be float16 or float32")
        at_least(self, 1, "block num_clusters pca_dim num_targets max_frames")
        at_least(self, 0, "seed")
        if self.segments and self.version != 1:
            raise ValueError(
                "segments are of version 1, but version is 2, whose frames are searched as they "
                "are: leave --segments out, or take --version 1"
            )
        clusters = self.num_clusters if self.version == 1 else self.num_targets
        if self.max_frames < clusters:
            raise ValueError(
                f"max_frames is {self.max_frames} but must be at least the number of clusters "
                f"({clusters})"
            )


def splits(train: str | None, others: list[str]) -> dict[str, str]:
    """Shards by name of the split: the training set, then each of the others as SHARDS (its name
    is the folder's) or NAME=SHARDS. Raises ConfigError where names are not usable or twice."""
    out = {} if train is None else {TRAIN: train}
    for other in others:
        name, equals, shards = other.partition("=")
        if not equals or "/" in name:
            shards = other
            name = "+".join(Path(part.strip()).resolve().name for part in other.split(","))
        if not NAME.fullmatch(name) or name in RESERVED or name in out:
            why = "is there twice" if name in out else "cannot be the name of a split"
            raise ConfigError(
                f"--valid {other}: {name!r} {why}; give another name (--valid NAME={shards}), not "
                f"{', '.join(RESERVED)}"
            )
        out[name] = shards
    return out

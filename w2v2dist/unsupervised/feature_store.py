"""A store of features: frames (T, C) of many utterances in one memory-mapped file, and what goes
with each: its key, its targets, what was said. N utterances, T frames of one, C channels, S
targets of one.

A folder has store.json (last: a folder with it is whole), utterances.jsonl (a line each),
features.npy (frames of all, C) and targets.npy (targets of all)."""

import json
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v2dist.config import ConfigError, diff
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.unsupervised.store_writer import VERSION, Label, fingerprint_of
from w2v2dist.unsupervised.store_writer import FeatureStoreWriter as FeatureStoreWriter

Frames = NDArray[np.float32]
Targets = NDArray[np.int64]
AGAIN = "remove the folder and make it again with the same command"


class FeatureStore:
    """The features of a data set. `keys` in the data's order, `num_frames` (N,) int64, `dim` C,
    `labels` by key (for watching alone: of those that have any), `meta` what the frames are:
    "made_by" tells what they mean (model, block, …), "rate_hz" how many a second has.
    `fingerprint` tells its content from all others'. Raises ConfigError: missing, unfinished,
    damaged."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "store.json"
        if not path.is_file():
            raise ConfigError(self._missing())
        try:
            self._open(path)
        except ConfigError:
            raise
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(
                f"the features in {self.folder} are damaged ({what}): {AGAIN}"
            ) from None

    def _missing(self) -> str:
        """What to say of a path that has no store."""
        make = "make them with w2v2dist unsupervised audio"
        if self.folder.is_file():
            return f"{self.folder} is a file, but features are a folder: {make}, or name a folder"
        if "," in str(self.folder) and not self.folder.exists():
            return (
                f"{self.folder} is several folders, but features are one: name one of them, or put "
                "their recordings together in one command of w2v2dist unsupervised audio"
            )
        return (
            f"{self.folder} holds no features (store.json is missing): {make}; an interrupted one "
            "goes on with the same command"
        )

    def _open(self, path: Path) -> None:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']}, not {VERSION}")
        self.meta: dict[str, Any] = content["meta"]
        self.dim, self.dtype = int(content["dim"]), np.dtype(content["dtype"])
        self.fingerprint = str(content["fingerprint"])
        lines = read_jsonl(self.folder / "utterances.jsonl")
        self.keys: list[str] = [str(line["key"]) for line in lines]
        self.num_frames = np.array([line["num_frames"] for line in lines], np.int64)
        self.labels: dict[str, Label] = {r["key"]: r["label"] for r in lines if r.get("label")}
        self._num_targets = [line.get("num_targets") for line in lines]  # None: it has none
        self._crc = [int(line["crc"]) for line in lines]
        self._unseen = np.ones(len(lines), bool)  # whose frames were not compared with their sum
        self._ends = np.cumsum([0, *self.num_frames])
        self._target_ends = np.cumsum([0, *(n or 0 for n in self._num_targets)])
        self._features = self._mapped("features.npy", (int(self._ends[-1]), self.dim))
        self._targets = self._mapped("targets.npy", (int(self._target_ends[-1]),))
        targets = np.ascontiguousarray(self._targets)
        if fingerprint_of(content, lines, targets) != self.fingerprint:
            raise ConfigError(f"the features in {self.folder} were changed after they were made: "
                              f"their fingerprint is not {self.fingerprint}; {AGAIN}")  # fmt: skip

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def number(self) -> dict[str, int]:
        """The place of each key."""
        return {key: i for i, key in enumerate(self.keys)}

    @property
    def made_by(self) -> dict[str, Any]:
        """What its frames mean: those of stores with other values cannot be mixed with them."""
        return dict(self.meta.get("made_by") or {})

    @property
    def has_targets(self) -> bool:
        """Whether any utterance has auxiliary targets."""
        return any(n is not None for n in self._num_targets)

    def frames(self, i: int) -> Frames:
        """(T, C) float32 of utterance `i`. Raises ConfigError where the file was damaged."""
        raw = self._features[self._ends[i] : self._ends[i + 1]]
        if self._unseen[i]:  # once
            if zlib.crc32(np.ascontiguousarray(raw).data) != self._crc[i]:
                raise ConfigError(
                    f"{self.folder / 'features.npy'} is damaged: the frames of {self.keys[i]} are "
                    f"not those that were written; {AGAIN}"
                )
            self._unseen[i] = False
        return np.array(raw, np.float32)

    def targets(self, i: int) -> Targets | None:
        """(S,) of utterance `i`, at the frames' rate; None where it has none."""
        if self._num_targets[i] is None:
            return None
        return np.array(self._targets[self._target_ends[i] : self._target_ends[i + 1]], np.int64)

    def verify(self) -> None:
        """Read all frames once. Raises ConfigError where one was damaged."""
        for i in range(len(self)):
            self.frames(i)

    def _mapped(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        path = self.folder / name
        try:
            values: NDArray[Any] = np.load(path, mmap_mode="r" if shape[0] else None)
        except (OSError, EOFError, ValueError) as error:
            raise ConfigError(f"{path} cannot be used ({error}): {AGAIN}") from None
        if values.shape != shape:
            raise ConfigError(f"{path} is {values.shape} but must be {shape}: {AGAIN}")
        return values


def check_alike(one: FeatureStore, other: FeatureStore) -> None:
    """Raise ConfigError where the features of two stores do not mean the same: of two models, of
    two blocks, or made with other clusters."""
    if one.dim != other.dim:
        raise ConfigError(
            f"{one.folder} has frames of {one.dim} channels but {other.folder} of {other.dim}: "
            "features of one kind are needed; make both with one command"
        )
    for name, (ours, theirs) in diff(one.made_by, other.made_by).items():
        raise ConfigError(
            f"the features of {one.folder} and {other.folder} cannot be mixed: {name} is "
            f"{ours} in one and {theirs} in the other; make both with one "
            "command (w2v2dist unsupervised audio --data … --valid …)"
        )

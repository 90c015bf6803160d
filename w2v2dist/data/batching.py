"""Utterances to micro-batches: pure functions of their lengths."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from w2v2dist.data.config import DataConfig

Array = npt.NDArray[np.int64]


class Lengths(Protocol):
    """What an order of samples asks of their index: of utterances, or of sentences."""

    num_samples: npt.NDArray[Any]  # of each
    shard_first: Array  # where each group begins that stays together, and the number of all

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The utterances of one slot at one step: index rows, at what speed each is played, and what
    part of it is used (in samples at that speed)."""

    step: int
    slot: int
    epoch: int
    ids: Array
    starts: Array
    num_samples: Array
    percent: Array  # of the recording's speed

    @classmethod
    def empty(cls, step: int, slot: int, num_samples: int) -> "MicroBatch":
        """One row of so many samples that is no utterance: what a slot without any runs on."""
        zero = np.zeros(1, np.int64)
        return cls(step, slot, 0, zero, zero, zero + num_samples, zero + 100)

    def span(self, row: int) -> tuple[int, int]:
        """First sample of the recording that a row needs, and how many."""
        first = int(self.starts[row] * self.percent[row] // 100)
        end = -(-(self.starts[row] + self.num_samples[row]) * self.percent[row] // 100)
        return first, int(end) - first


def played(num_samples: npt.NDArray[np.integer[Any]], percent: Array | int) -> Array:
    """Samples of utterances that are played at `percent` of their speed."""
    return np.asarray(num_samples.astype(np.int64) * 100 // percent)


def num_batches(sizes: Array, max_samples: int) -> int:
    """How many micro-batches `batch_by_size` makes: the rows of one follow from its longest."""
    rows = np.bincount(np.maximum(1, max_samples // sizes))
    first = last = total = 0
    for count in np.flatnonzero(rows).tolist():  # the longest first
        last += int(rows[count])
        more = max(0, -(-(last - first) // count))
        first, total = first + more * count, total + more
    return total


def batch_by_size(ids: Array, sizes: Array, max_samples: int) -> list[Array]:
    """Group utterances by length into micro-batches of at most `max_samples` (count × longest)."""
    by_size = np.argsort(-sizes, kind="stable")  # equal lengths stay in the shuffled order
    batches, first = [], 0
    while first < len(ids):
        count = max(1, max_samples // int(sizes[by_size[first]]))
        batches.append(ids[by_size[first : first + count]])
        first += count
    return batches


def validation_batches(index: Lengths, config: DataConfig, crop: bool) -> list[MicroBatch]:
    """Every utterance of a validation set once, longest first; `slot` counts micro-batches. With
    `crop`, the middle `max_crop` samples at most of an utterance are used; without, all of it."""
    keep = np.flatnonzero(index.num_samples >= (config.min_samples if crop else 1)).astype(np.int64)
    sizes = index.num_samples[keep].astype(np.int64)
    sizes = np.minimum(sizes, config.max_crop) if crop else sizes
    out = []
    for slot, ids in enumerate(batch_by_size(keep, sizes, config.max_samples_per_slot)):
        full = index.num_samples[ids].astype(np.int64)
        size = np.full(len(ids), min(int(full.min()), config.max_crop)) if crop else full
        normal = np.full(len(ids), 100)
        out.append(MicroBatch(0, slot, 0, ids, (full - size) // 2, size, normal))
    return out

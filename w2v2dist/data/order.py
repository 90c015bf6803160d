"""The order of the data: (seed, step, slot) -> micro-batch, a pure function of configuration and
index.

Every slot reads its own stream. In each epoch the shards are permuted by (seed, epoch), their
utterances laid end to end, and the line is cut into `virtual_world_size` equal ranges; slot s has
the s-th. Nothing here reads audio.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from w2v2dist.data.index import ShardIndex
from w2v2dist.runtime.keyed import keyed_rng

Array = npt.NDArray[np.int64]
SAMPLE_RATE = 16_000
DRAWN_AT_ONCE = 1 << 20  # speeds; the same draws in blocks of any size


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Shards and micro-batches. Audio lengths are in samples at 16 kHz."""

    train: str | None = None  # folder with index.json; several separated by commas
    valid: str | None = None
    virtual_world_size: int = 64  # micro-batches (slots) of one step, on any number of GPUs
    max_samples_per_slot: int = 1_400_000
    # Pre-training crops to it; fine-tuning leaves longer utterances out
    max_crop: int = 250_000
    min_samples: int = 32_000  # shorter utterances are left out
    crop_multiple: int = 1  # crops are rounded down to a multiple of it: fewer shapes
    # An utterance is played at one of these speeds, drawn for each epoch (1.1: shorter and higher);
    # the limits on its length hold at all of them
    speed_perturbation: tuple[float, ...] = (1.0,)
    normalize: bool = False  # utterances to zero mean and unit variance
    shuffle_window: int = 10_000  # utterances
    num_workers: int = 4
    prefetch: int = 4
    max_bad_samples: int = 100  # more utterances than these that cannot be used stop the run
    # A read that fails (an I/O error, a vanished or cut shard) is tried again after 0.1, 0.2, 0.4 …
    # s; one without an answer for read_timeout_s has failed (0: wait for ever) and is tried once
    # more. Keep some such reads together under loop.stall_timeout_s.
    read_retries: int = 5
    read_timeout_s: float = 60.0
    on_read_error: Literal["skip", "stop"] = "skip"  # skip: one utterance; it counts as bad
    tokens: Literal["letters", "phones"] = "letters"

    def __post_init__(self) -> None:
        for name in (
            "virtual_world_size",
            "max_crop",
            "min_samples",
            "crop_multiple",
            "shuffle_window",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.max_crop > self.max_samples_per_slot:
            raise ValueError(
                f"max_crop is {self.max_crop} but must be at most max_samples_per_slot "
                f"({self.max_samples_per_slot}): one utterance has to fit into a micro-batch"
            )
        if self.min_samples > self.max_crop:
            raise ValueError(
                f"min_samples is {self.min_samples} but must be at most max_crop ({self.max_crop})"
            )
        for speed in self.speed_perturbation or (0.0,):
            if not 0.5 <= speed <= 2 or abs(100 * speed - round(100 * speed)) > 1e-6:
                raise ValueError(
                    f"speed_perturbation is {list(self.speed_perturbation)} but must list speeds "
                    f"from 0.5 to 2 in steps of 0.01; [1.0] leaves the audio as it is"
                )
        if self.num_workers < 0 or self.prefetch < 1 or self.max_bad_samples < 0:
            raise ValueError(
                f"num_workers ({self.num_workers}) and max_bad_samples ({self.max_bad_samples}) "
                f"must not be negative, and prefetch ({self.prefetch}) must be at least 1"
            )
        if self.read_retries < 0 or self.read_timeout_s < 0:
            raise ValueError(
                f"read_retries ({self.read_retries}) and read_timeout_s ({self.read_timeout_s}) "
                f"must not be negative"
            )
        if self.crop_multiple > self.min_samples:
            raise ValueError(
                f"crop_multiple is {self.crop_multiple} but must be at most min_samples"
            )


@dataclass(frozen=True, slots=True)
class _Window:
    """The micro-batches of a slot's window in order: the k-th begins at row cuts[k]."""

    ids: npt.NDArray[np.uint32]
    percent: npt.NDArray[np.uint8]
    cuts: Array


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

    def span(self, row: int) -> tuple[int, int]:
        """First sample of the recording that a row needs, and how many."""
        first = int(self.starts[row] * self.percent[row] // 100)
        end = -(-(self.starts[row] + self.num_samples[row]) * self.percent[row] // 100)
        return first, int(end) - first


class DataOrder:
    """Which utterances, in which crops, slot `slot` uses at step `step` (1 is the first).

    With `crop`, every utterance of a micro-batch is cropped to the shortest of them, so nothing is
    padded (pre-training); without, utterances stay whole (fine-tuning).
    """

    def __init__(self, index: ShardIndex, config: DataConfig, seed: int, crop: bool) -> None:
        self.index, self.config, self.seed, self.crop = index, config, seed, crop
        percents = [round(100 * speed) for speed in config.speed_perturbation]
        self._percents = np.array(percents)
        # The recordings whose length is within the limits at all speeds, by their own samples
        self._least = -(-config.min_samples * max(percents) // 100)
        self._most = None if crop else ((config.max_crop + 1) * min(percents) - 1) // 100
        # Utterances of each shard that pass the length filter. Nothing of the length of the index
        # is kept: every process and data worker of a node would hold its own.
        shards = itertools.pairwise(index.shard_first.tolist())
        self._count = np.array([np.count_nonzero(self._eligible(*s)) for s in shards], np.int64)
        self.num_eligible = int(self._count.sum())
        if self.num_eligible < config.virtual_world_size:
            raise ValueError(
                f"the shards hold {self.num_eligible} utterances of {config.min_samples} samples "
                f"or more but "
                f"data.virtual_world_size is {config.virtual_world_size}, and each slot needs "
                f"one: add audio, or "
                "lower data.virtual_world_size or data.min_samples"
            )
        # The last epoch's permuted shards, and how many utterances lie up to the end of each
        self._line: tuple[int, Array, Array] = (-1, self._count, self._count)
        self._ends: dict[int, list[int]] = {}  # slot -> 0, then its last step in each window
        self._number: dict[int, int] = {}  # slot -> the window it is in, counted through epochs
        self._window: dict[int, _Window] = {}

    def micro_batch(self, step: int, slot: int) -> MicroBatch:
        """The micro-batch of a slot at a step; steps before it are not visited, only counted."""
        epoch, ids, percent = self._find(step, slot)
        full = played(self.index.num_samples[ids], percent)
        if not self.crop:
            return MicroBatch(step, slot, epoch, ids, np.zeros_like(full), full, percent)
        size = min(int(full.min()), self.config.max_crop)
        size -= size % self.config.crop_multiple
        starts = [
            int(keyed_rng(self.seed, "crop", epoch, int(i)).integers(0, int(n) - size + 1))
            for i, n in zip(ids, full, strict=True)
        ]
        sizes = np.full(len(ids), size)
        return MicroBatch(step, slot, epoch, ids, np.array(starts), sizes, percent)

    def _eligible(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Which of the rows first … last - 1 of the index pass the length filter."""
        sizes = np.asarray(self.index.num_samples)[first:last]  # slices of a memmap are slow
        return (sizes >= self._least) & (True if self._most is None else sizes <= self._most)

    def _speeds(self, epoch: int, ids: Array) -> Array:
        """Percent of its speed at which each utterance is played in an epoch."""
        if len(self._percents) == 1:
            return np.full(len(ids), self._percents[0])
        rng = keyed_rng(self.seed, "speed", epoch)
        drawn = np.empty(len(self.index), np.uint8)
        for first in range(0, len(drawn), DRAWN_AT_ONCE):
            block = drawn[first : first + DRAWN_AT_ONCE]
            block[:] = rng.integers(len(self._percents), size=len(block))
        return self._percents[drawn[ids]]

    def _range(self, slot: int) -> tuple[int, int]:
        """The slot's part of the line of eligible utterances: the first, and the last + 1."""
        low, high = (
            self.num_eligible * s // self.config.virtual_world_size for s in (slot, slot + 1)
        )
        return low, high

    def _ids(self, epoch: int, low: int, high: int) -> Array:
        """Utterances low … high - 1 of the epoch's line of eligible ones, shard behind shard."""
        if self._line[0] != epoch:
            shards = keyed_rng(self.seed, "shards", epoch).permutation(len(self._count))
            self._line = epoch, shards, np.cumsum(self._count[shards])
        _, shards, ends = self._line
        parts = []
        for k in range(int(np.searchsorted(ends, low, side="right")), len(shards)):
            start = int(ends[k] - self._count[shards[k]])
            if start >= high:
                break
            first, last = (int(self.index.shard_first[shards[k] + j]) for j in (0, 1))
            ids = first + np.flatnonzero(self._eligible(first, last))
            parts.append(ids[max(0, low - start) : high - start])
        return np.concatenate(parts).astype(np.int64)

    def _find(self, step: int, slot: int) -> tuple[int, Array, Array]:
        """Epoch, utterances and percents of the micro-batch. Windows before its own are counted."""
        low, high = self._range(slot)
        starts = range(low, high, self.config.shuffle_window)  # of the windows of every epoch
        ends = self._ends.setdefault(slot, [0])
        while ends[-1] < step:
            epoch, k = divmod(len(ends) - 1, len(starts))
            ids = self._ids(epoch, starts[k], min(starts[k] + starts.step, high))
            sizes = self._sizes(ids, self._speeds(epoch, ids))
            ends.append(ends[-1] + num_batches(sizes, self.config.max_samples_per_slot))
        number = bisect.bisect_left(ends, step) - 1
        if self._number.get(slot) != number:
            epoch, k = divmod(number, len(starts))
            self._number[slot] = number
            self._window[slot] = self._make_window(epoch, slot, starts[k])
        window, position = self._window[slot], step - 1 - ends[number]
        rows = slice(*window.cuts[position : position + 2])
        ids, percent = (a[rows].astype(np.int64) for a in (window.ids, window.percent))
        return number // len(starts), ids, percent

    def _sizes(self, ids: Array, percent: Array) -> Array:
        return np.minimum(played(self.index.num_samples[ids], percent), self.config.max_crop)

    def _make_window(self, epoch: int, slot: int, start: int) -> _Window:
        """The micro-batches of the slot's window that begins at `start` of the epoch's line."""
        low, high = self._range(slot)
        rng = keyed_rng(self.seed, "window", epoch, slot, start - low)
        ids = self._ids(epoch, start, min(start + self.config.shuffle_window, high))
        ids = rng.permutation(ids)
        percent = self._speeds(epoch, ids)
        limit = self.config.max_samples_per_slot
        rows = batch_by_size(np.arange(len(ids)), self._sizes(ids, percent), limit)
        rows = [rows[i] for i in rng.permutation(len(rows))]
        flat = np.concatenate(rows)
        cuts = np.cumsum([0, *map(len, rows)])
        return _Window(ids[flat].astype(np.uint32), percent[flat].astype(np.uint8), cuts)


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


def validation_batches(index: ShardIndex, config: DataConfig, crop: bool) -> list[MicroBatch]:
    """Every utterance of a validation set once, longest first; `slot` is the number of the
    micro-batch.

    With `crop`, the middle `max_crop` samples at most of an utterance are used; without, all of it.
    """
    keep = np.flatnonzero(index.num_samples >= (config.min_samples if crop else 1)).astype(np.int64)
    sizes = index.num_samples[keep].astype(np.int64)
    if crop:
        sizes = np.minimum(sizes, config.max_crop)
    out = []
    for slot, ids in enumerate(batch_by_size(keep, sizes, config.max_samples_per_slot)):
        full = index.num_samples[ids].astype(np.int64)
        size = np.full(len(ids), min(int(full.min()), config.max_crop)) if crop else full
        normal = np.full(len(ids), 100)
        out.append(MicroBatch(0, slot, 0, ids, (full - size) // 2, size, normal))
    return out

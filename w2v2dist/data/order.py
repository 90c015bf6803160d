"""The order of the data: (seed, step, slot) -> micro-batch, a pure function of configuration and
index.

Every slot reads its own stream. In each epoch the shards are permuted by (seed, epoch), their
utterances laid end to end, and the line is cut into `virtual_world_size` equal ranges; slot s has
the s-th. Nothing here reads audio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from w2v2dist.data.index import ShardIndex
from w2v2dist.keyed import keyed_rng

Array = npt.NDArray[np.int64]
SAMPLE_RATE = 16_000


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
    # s; one without an answer for read_timeout_s has failed (0: wait for ever). Keep all tries
    # together under loop.stall_timeout_s.
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
        keep = played(index.num_samples, max(percents)) >= config.min_samples
        if not crop:
            keep &= played(index.num_samples, min(percents)) <= config.max_crop
        self._eligible = keep
        # Utterances of each shard that pass the length filter
        self._count = np.array(
            [
                int(keep[a:b].sum())
                for a, b in zip(index.shard_first[:-1], index.shard_first[1:], strict=True)
            ]
        )
        self.num_eligible = int(self._count.sum())
        if self.num_eligible < config.virtual_world_size:
            raise ValueError(
                f"the shards hold {self.num_eligible} utterances of {config.min_samples} samples "
                f"or more but "
                f"data.virtual_world_size is {config.virtual_world_size}, and each slot needs "
                f"one: add audio, or "
                "lower data.virtual_world_size or data.min_samples"
            )
        self._speed_of_epoch: dict[int, npt.NDArray[np.uint8]] = {}
        self._first_of_epoch: dict[int, list[int]] = {}
        self._plans: dict[tuple[int, int], list[Array]] = {}

    def micro_batch(self, step: int, slot: int) -> MicroBatch:
        """The micro-batch of a slot at a step; steps before it are not visited, only counted."""
        epoch, position = self._locate(step, slot)
        ids = self._plan(epoch, slot)[position]
        percent = self._speeds(epoch, ids)
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

    def _speeds(self, epoch: int, ids: Array) -> Array:
        """Percent of its speed at which each utterance is played in an epoch."""
        if len(self._percents) == 1:
            return np.full(len(ids), self._percents[0])
        if epoch not in self._speed_of_epoch:
            if len(self._speed_of_epoch) > 2:  # slots are at neighbouring epochs
                self._speed_of_epoch.pop(next(iter(self._speed_of_epoch)))
            rng = keyed_rng(self.seed, "speed", epoch)
            drawn = rng.integers(len(self._percents), size=len(self.index.num_samples))
            self._speed_of_epoch[epoch] = drawn.astype(np.uint8)
        return self._percents[self._speed_of_epoch[epoch][ids]]

    def _locate(self, step: int, slot: int) -> tuple[int, int]:
        """Epoch of the slot's stream and position inside it."""
        first = self._first_of_epoch.setdefault(slot, [0])
        while first[-1] < step:
            first.append(first[-1] + len(self._plan(len(first) - 1, slot)))
        epoch = int(np.searchsorted(first, step - 1, side="right")) - 1
        return epoch, step - 1 - first[epoch]

    def _slot_ids(self, epoch: int, slot: int) -> Array:
        """Eligible utterances of the slot's range of the epoch's line of shards."""
        shards = keyed_rng(self.seed, "shards", epoch).permutation(len(self._count))
        ends = np.cumsum(self._count[shards])
        low, high = (
            self.num_eligible * s // self.config.virtual_world_size for s in (slot, slot + 1)
        )
        parts = []
        for k in range(int(np.searchsorted(ends, low, side="right")), len(shards)):
            start = int(ends[k] - self._count[shards[k]])
            if start >= high:
                break
            first, last = (int(self.index.shard_first[shards[k] + j]) for j in (0, 1))
            ids = first + np.flatnonzero(self._eligible[first:last])
            parts.append(ids[max(0, low - start) : high - start])
        return np.concatenate(parts).astype(np.int64)

    def _plan(self, epoch: int, slot: int) -> list[Array]:
        """The micro-batches of one slot in one epoch; the slot's last two epochs are kept."""
        if (epoch, slot) not in self._plans:
            self._plans.pop((epoch - 2, slot), None)
            self._plans[epoch, slot] = self._make_plan(epoch, slot)
        return self._plans[epoch, slot]

    def _make_plan(self, epoch: int, slot: int) -> list[Array]:
        """The micro-batches of one slot in one epoch, in order."""
        ids = self._slot_ids(epoch, slot)
        plan: list[Array] = []
        for low in range(0, len(ids), self.config.shuffle_window):
            rng = keyed_rng(self.seed, "window", epoch, slot, low)
            window = rng.permutation(ids[low : low + self.config.shuffle_window])
            full = played(self.index.num_samples[window], self._speeds(epoch, window))
            sizes = np.minimum(full, self.config.max_crop)
            batches = batch_by_size(window, sizes, self.config.max_samples_per_slot)
            plan += [batches[i] for i in rng.permutation(len(batches))]
        return plan


def played(num_samples: npt.NDArray[np.integer[Any]], percent: Array | int) -> Array:
    """Samples of utterances that are played at `percent` of their speed."""
    return np.asarray(num_samples.astype(np.int64) * 100 // percent)


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

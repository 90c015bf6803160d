"""The order of the data: (seed, step, slot) -> micro-batch, given a configuration and an index.
Every slot reads its own stream. An epoch's line of utterances (line.py) is cut into
`virtual_world_size` equal ranges; slot s has the s-th. Steps are found by counting micro-batches
window by window. Nothing here reads audio."""

import bisect
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from w2v2dist.data.batching import Array, Lengths, MicroBatch, batch_by_size, num_batches, played
from w2v2dist.data.config import DataConfig
from w2v2dist.data.line import Line
from w2v2dist.runtime.keyed import keyed_rng


class _Window(NamedTuple):
    """The micro-batches of a slot's window in order: the k-th begins at row cuts[k]."""

    ids: npt.NDArray[np.uint32]
    percent: npt.NDArray[np.uint8]
    cuts: Array


class DataOrder:
    """Which utterances, in which crops, slot `slot` uses at step `step` (1 is the first). With
    `crop`, every utterance of a micro-batch is cropped to the shortest of them, so nothing is
    padded (pre-training); without, utterances stay whole (fine-tuning)."""

    def __init__(self, index: Lengths, config: DataConfig, seed: int, crop: bool) -> None:
        self.index, self.config, self.seed, self.crop = index, config, seed, crop
        self._line = Line(index, config, seed, crop)
        self.num_eligible = len(self._line)
        if self.num_eligible < config.virtual_world_size:
            most = "" if crop else f" and {config.max_crop} samples at most"
            remedy = "" if crop else ", or raise data.max_crop"
            raise ValueError(
                f"the shards hold {self.num_eligible} utterances of {config.min_samples} samples "
                f"or more{most} but data.virtual_world_size is {config.virtual_world_size}, and "
                "each slot needs one: add audio, or lower data.virtual_world_size or "
                f"data.min_samples{remedy}"
            )
        self._ends: dict[int, list[int]] = {}  # slot -> 0, then its last step in each window
        # slot -> the number, counted through epochs, of the window that it is in, and the window
        self._window: dict[int, tuple[int, _Window]] = {}

    def left_out(self) -> tuple[int, int]:
        """How many utterances are too short, and how many too long to be used."""
        return self._line.left_out()

    def micro_batch(self, step: int, slot: int) -> MicroBatch:
        """The micro-batch of a slot at a step; steps before it are not visited, only counted."""
        epoch, ids, percent = self._find(step, slot)
        full = played(self.index.num_samples[ids], percent)
        if not self.crop:
            return MicroBatch(step, slot, epoch, ids, np.zeros_like(full), full, percent)
        size = min(int(full.min()), self.config.max_crop)
        size -= size % self.config.crop_multiple
        rngs = (keyed_rng(self.seed, "crop", epoch, i) for i in ids.tolist())
        ends = (full - size + 1).tolist()
        starts = np.array([rng.integers(end) for rng, end in zip(rngs, ends, strict=True)])
        return MicroBatch(step, slot, epoch, ids, starts, np.full(len(ids), size), percent)

    def _range(self, slot: int) -> tuple[int, int]:
        """The slot's part of the line of eligible utterances: the first, and the last + 1."""
        number, of = self.num_eligible, self.config.virtual_world_size
        return number * slot // of, number * (slot + 1) // of

    def _find(self, step: int, slot: int) -> tuple[int, Array, Array]:
        """Epoch, utterances and percents of the micro-batch. Windows before its own are counted."""
        low, high = self._range(slot)
        starts = range(low, high, self.config.shuffle_window)  # of the windows of every epoch
        ends = self._ends.setdefault(slot, [0])
        while ends[-1] < step:
            epoch, k = divmod(len(ends) - 1, len(starts))
            ids = self._line.ids(epoch, starts[k], min(starts[k] + starts.step, high))
            sizes = self._line.sizes(ids, self._line.percents(epoch, ids))
            ends.append(ends[-1] + num_batches(sizes, self.config.max_samples_per_slot))
        number = bisect.bisect_left(ends, step) - 1
        epoch, k = divmod(number, len(starts))
        if slot not in self._window or self._window[slot][0] != number:
            self._window[slot] = number, self._make_window(epoch, slot, starts[k])
        window, position = self._window[slot][1], step - 1 - ends[number]
        rows = slice(*window.cuts[position : position + 2])
        return epoch, window.ids[rows].astype(np.int64), window.percent[rows].astype(np.int64)

    def _make_window(self, epoch: int, slot: int, start: int) -> _Window:
        """The micro-batches of the slot's window that begins at `start` of the epoch's line."""
        low, high = self._range(slot)
        rng = keyed_rng(self.seed, "window", epoch, slot, start - low)
        ids = self._line.ids(epoch, start, min(start + self.config.shuffle_window, high))
        ids = rng.permutation(ids)
        percent = self._line.percents(epoch, ids)
        limit = self.config.max_samples_per_slot
        rows = batch_by_size(np.arange(len(ids)), self._line.sizes(ids, percent), limit)
        rows = [rows[i] for i in rng.permutation(len(rows))]
        flat = np.concatenate(rows)
        cuts = np.cumsum([0, *map(len, rows)])
        return _Window(ids[flat].astype(np.uint32), percent[flat].astype(np.uint8), cuts)

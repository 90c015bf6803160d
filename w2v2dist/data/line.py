"""An epoch of one corpus: its shards permuted, the utterances that may be used laid end to end, and
the speed at which each is played. Nothing here reads audio."""

import itertools

import numpy as np
import numpy.typing as npt

from w2v2dist.data.batching import Array, Lengths, played
from w2v2dist.data.config import DataConfig
from w2v2dist.runtime.keyed import keyed_rng

DRAWN_AT_ONCE = 1 << 20  # speeds; the same draws in blocks of any size


class Line:
    """The utterances of every epoch that pass the length filter, shard behind shard; the order of
    the shards and the speeds are keyed by (seed, epoch). Lengths hold at all speeds."""

    def __init__(self, index: Lengths, config: DataConfig, seed: int, crop: bool) -> None:
        self.index, self.config, self.seed = index, config, seed
        percents = [round(100 * speed) for speed in config.speed_perturbation]
        self._percents = np.array(percents)
        # The recordings whose length is within the limits at all speeds, by their own samples
        self._least = -(-config.min_samples * max(percents) // 100)
        self._most = None if crop else ((config.max_crop + 1) * min(percents) - 1) // 100
        # Utterances of each shard that pass the length filter. Nothing of the length of the index
        # is kept: every process and data worker of a node would hold its own.
        shards = itertools.pairwise(index.shard_first.tolist())
        self._count = np.array([np.count_nonzero(self._eligible(*s)) for s in shards], np.int64)
        # The last epoch's permuted shards, and how many utterances lie up to the end of each
        self._line: tuple[int, Array, Array] = (-1, self._count, self._count)

    def __len__(self) -> int:
        return int(self._count.sum())

    def left_out(self) -> tuple[int, int]:
        """How many utterances are too short, and how many too long."""
        short = long = 0
        for first, last in itertools.pairwise(self.index.shard_first.tolist()):
            sizes = np.asarray(self.index.num_samples)[first:last]
            short += int(np.count_nonzero(sizes < self._least))
            long += 0 if self._most is None else int(np.count_nonzero(sizes > self._most))
        return short, long

    def ids(self, epoch: int, low: int, high: int) -> Array:
        """Index rows of the utterances low … high - 1 of the epoch's line."""
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

    def percents(self, epoch: int, ids: Array) -> Array:
        """Percent of its speed at which each utterance is played in an epoch."""
        if len(self._percents) == 1:
            return np.full(len(ids), self._percents[0])
        rng = keyed_rng(self.seed, "speed", epoch)
        drawn = np.empty(len(self.index), np.uint8)
        for first in range(0, len(drawn), DRAWN_AT_ONCE):
            block = drawn[first : first + DRAWN_AT_ONCE]
            block[:] = rng.integers(len(self._percents), size=len(block))
        return self._percents[drawn[ids]]

    def sizes(self, ids: Array, percent: Array) -> Array:
        """Samples that each utterance can contribute at these speeds, at most `max_crop`."""
        return np.minimum(played(self.index.num_samples[ids], percent), self.config.max_crop)

    def _eligible(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Which of the rows first … last - 1 of the index pass the length filter."""
        sizes = np.asarray(self.index.num_samples)[first:last]  # slices of a memmap are slow
        return (sizes >= self._least) & (True if self._most is None else sizes <= self._most)

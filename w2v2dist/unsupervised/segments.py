"""Frames to segments (wav2vec-U, section 3.3): the mean of each run of frames of one cluster, then
the means of adjacent pairs. T frames, R runs, D channels."""

import numpy as np
from numpy.typing import NDArray

from w2v2dist.unsupervised.feature_store import Frames


def run_starts(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the runs of equal ids (T,) begin: (R,), the first of them 0."""
    changes = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    return np.concatenate([np.zeros(min(1, len(ids)), np.int64), changes])


def run_means(frames: Frames, ids: NDArray[np.int64]) -> Frames:
    """The mean (R, D) of each run of frames (T, D) that have one id (T,). Raises ValueError where
    there is not an id a frame."""
    if len(frames) != len(ids):
        raise ValueError(f"there are {len(frames)} frames but {len(ids)} ids: give one a frame")
    if not len(ids):
        return frames
    starts = run_starts(ids)
    sums = np.add.reduceat(frames.astype(np.float64), starts, axis=0)
    sizes = np.diff(np.append(starts, len(ids)))
    return (sums / sizes[:, None]).astype(np.float32)


def pair_means(frames: Frames) -> Frames:
    """The means of frames 0 and 1, 2 and 3, …: (ceil(T / 2), D); an odd last one is repeated."""
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    return np.asarray((frames[::2] + frames[1::2]) / np.float32(2), np.float32)

"""k-means and PCA of stored frames: fitted on a training set, applied to every set. N frames, C
channels, K clusters, D channels that are left."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from w2v2dist.config import ConfigError
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.unsupervised.feature_store import FeatureStore, Frames

NUM_ITERATIONS, NUM_RESTARTS = 50, 3  # of the features' k-means (fairseq's)
CPU = torch.device("cpu")
BLOCK = 1 << 14  # frames that are worked on at once


@dataclass(frozen=True, slots=True)
class Clusters:
    """Centroids (K, C) float32 of k-means, and the device that frames are compared on."""

    centroids: Frames
    device: torch.device = CPU

    def assign(self, frames: Frames) -> NDArray[np.int64]:
        """The nearest centroid (T,) of each of the frames (T, C), by Euclidean distance; of equal
        ones the first."""
        centroids = torch.from_numpy(self.centroids).to(self.device)
        half_norms = centroids.square().sum(1) / 2
        found = [
            (half_norms - torch.from_numpy(part).to(self.device) @ centroids.T).argmin(1).cpu()
            for part in np.split(frames, range(BLOCK, len(frames), BLOCK))
        ]
        return torch.cat(found).numpy()


@dataclass(frozen=True, slots=True)
class Projection:
    """PCA without whitening: x·A + b, A (C, D), b (D,), float32."""

    matrix: Frames
    offset: Frames

    def __call__(self, frames: Frames) -> Frames:
        """(T, C) -> (T, D)."""
        return np.asarray(frames @ self.matrix + self.offset, np.float32)


def sample(store: FeatureStore, max_frames: int, seed: int) -> tuple[Frames, int]:
    """Frames (N, C) of whole utterances in an order that the seed gives, of all where there are no
    more than `max_frames`, else of as many as fit; and of how many utterances."""
    order = keyed_rng(seed, "sample").permutation(len(store))
    ends = np.cumsum(store.num_frames[order])
    count = max(1, int(np.searchsorted(ends, max_frames, side="right")))
    chosen = np.sort(order[:count])
    out = np.empty((int(store.num_frames[chosen].sum()), store.dim), np.float32)
    first = 0
    for i in chosen.tolist():
        frames = store.frames(i)
        out[first : first + len(frames)] = frames
        first += len(frames)
    return out, len(chosen)


def fit_clusters(
    frames: Frames, num_clusters: int, seed: int, kind: Literal["features", "mfcc"] = "features"
) -> Frames:
    """Centroids (K, C) of the frames (N, C), which may be changed. Of features: Lloyd's algorithm,
    50 iterations, the best of 3 starts (as fairseq; but k-means++ starts, where faiss takes
    random frames, which miss more clusters). Of MFCCs:
    HuBERT's mini-batches. One thread: sums are added in one order, so that the result is the same
    to the bit. Raises ConfigError where there are fewer frames than clusters."""
    if len(frames) < num_clusters:
        raise ConfigError(
            f"{num_clusters} clusters cannot be found in {len(frames)} frames: give more audio, or "
            f"ask for fewer ({'--clusters' if kind == 'features' else '--targets'})"
        )
    from sklearn import cluster  # takes a second to import

    state = keyed_seed(seed, "k-means", kind) % (1 << 32)
    common: dict[str, Any] = {"n_clusters": num_clusters, "tol": 0.0}
    if kind == "features":
        model = cluster.KMeans(
            **common,
            init="k-means++",
            n_init=NUM_RESTARTS,
            max_iter=NUM_ITERATIONS,
            random_state=state,
            copy_x=False,
            algorithm="lloyd",
        )
    else:
        model = cluster.MiniBatchKMeans(
            **common,
            init="k-means++",
            n_init=20,
            max_iter=100,
            batch_size=10_000,
            max_no_improvement=100,
            reassignment_ratio=0.0,
            compute_labels=False,
            random_state=seed,
        )
    with threadpool_limits(1):
        model.fit(frames)
    return np.ascontiguousarray(model.cluster_centers_, np.float32)


def check_pca(dim: int, channels: int) -> None:
    """Raise ConfigError where frames have too few channels for `dim` of PCA."""
    if dim > channels:
        raise ConfigError(
            f"PCA to {dim} channels was asked for, but the frames have {channels}: set --pca to no "
            "more than that"
        )


def fit_projection(blocks: Iterable[Frames], dim: int) -> Projection:
    """The `dim` directions of most variance of the frames (T, C) of all blocks, which are read
    once: any number of frames takes C × C numbers of memory. Raises ConfigError where the frames
    have fewer channels, or there are none."""
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        check_pca(dim, block.shape[1])
        values = block.astype(np.float64)
        if not count:
            first = values[0].copy()  # so that no large numbers are subtracted from each other
            total, products = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
        values -= first
        count += len(values)
        total += values.sum(0)
        products += values.T @ values
    if not count:
        raise ConfigError("PCA needs frames, but there are none")
    mean = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    matrix = vectors[:, : -dim - 1 : -1]  # the largest first
    matrix = matrix * np.sign(matrix[np.abs(matrix).argmax(0), np.arange(dim)])  # one of two signs
    offset = -(first + mean) @ matrix
    return Projection(np.ascontiguousarray(matrix, np.float32), offset.astype(np.float32))

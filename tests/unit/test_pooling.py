"""k-means, PCA, pooling and MFCC targets against slow and obvious references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.speech import talk
from w2v2dist.config import ConfigError
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.unsupervised import mfcc_targets
from w2v2dist.unsupervised.clustering import Clusters, fit_clusters, fit_projection, sample
from w2v2dist.unsupervised.feature_store import FeatureStore, FeatureStoreWriter
from w2v2dist.unsupervised.segments import pair_means, run_means, run_starts

ids_of_runs = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def blobs(num: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Frames around six centres, which are far from each other, and the centres."""
    rng = np.random.default_rng(seed)
    centres = 20 * rng.standard_normal((6, 5))
    frames = centres[np.arange(num) % 6] + 0.1 * rng.standard_normal((num, 5))
    return frames.astype(np.float32), centres.astype(np.float32)


def slow_runs(frames: Any, ids: Any) -> list[Any]:
    runs: list[list[Any]] = []
    for i, (frame, one) in enumerate(zip(frames, ids, strict=True)):
        if i == 0 or one != ids[i - 1]:
            runs.append([])
        runs[-1].append(frame.astype(np.float64))
    return [sum(run) / len(run) for run in runs]


@given(ids=ids_of_runs)
@settings(deadline=None)
def test_runs_of_one_id_become_their_mean(ids: list[int]) -> None:
    frames = np.random.default_rng(len(ids)).standard_normal((len(ids), 3)).astype(np.float32)
    found = run_means(frames, np.array(ids))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_runs(frames, ids), rtol=1e-6, atol=1e-6)
    assert len(run_starts(np.array(ids))) == len(found)


@given(num=st.integers(1, 30))
@settings(deadline=None)
def test_adjacent_pairs_become_their_mean(num: int) -> None:
    frames = np.random.default_rng(num).standard_normal((num, 2)).astype(np.float32)
    padded = [*frames, frames[-1]] if num % 2 else [*frames]
    slow = [(padded[i] + padded[i + 1]) / 2 for i in range(0, len(padded), 2)]
    found = pair_means(frames)
    assert len(found) == -(-num // 2)
    np.testing.assert_allclose(found, slow, rtol=1e-6)


def test_no_frames_and_not_enough_ids() -> None:
    none = np.zeros((0, 3), np.float32)
    assert run_means(none, np.zeros(0, np.int64)).shape == (0, 3)
    assert pair_means(none).shape == (0, 3)
    with pytest.raises(ValueError, match="2 frames but 3 ids"):
        run_means(np.zeros((2, 3), np.float32), np.zeros(3, np.int64))


def test_the_nearest_centroid() -> None:
    rng = np.random.default_rng(1)
    frames = rng.standard_normal((40_000, 4)).astype(np.float32)
    centroids = rng.standard_normal((7, 4)).astype(np.float32)
    centroids[3] = centroids[2]  # of equal ones the first
    found = Clusters(centroids, torch.device("cpu")).assign(frames)
    slow = np.square(frames[:, None].astype(np.float64) - centroids).sum(-1).argmin(1)
    assert (found == slow).mean() > 0.9999
    assert 3 not in found
    assert Clusters(centroids).assign(frames[:0]).shape == (0,)


@pytest.mark.parametrize("kind", ["features", "mfcc"])
def test_clusters_are_found_and_the_same_each_time(kind: Any) -> None:
    frames, centres = blobs(3_000)
    found = [fit_clusters(frames.copy(), 6, 0, kind) for _ in range(2)]
    assert found[0].tobytes() == found[1].tobytes()
    distances = np.linalg.norm(centres[:, None] - found[0], axis=-1).min(1)
    assert distances.max() < 0.05
    # each is the mean of its frames, as after a step of k-means
    ids = Clusters(found[0]).assign(frames)
    means = [frames[ids == k].mean(0) for k in range(6)]
    np.testing.assert_allclose(found[0], means, atol=1e-2 if kind == "mfcc" else 1e-4)


def test_too_few_frames_for_the_clusters() -> None:
    with pytest.raises(ConfigError, match=r"6 clusters cannot be found in 5 frames.*--targets"):
        fit_clusters(blobs(5)[0], 6, 0, "mfcc")


def test_pca_is_that_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(2)
    frames = (rng.standard_normal((500, 8)) @ rng.standard_normal((8, 8)) + 100).astype(np.float32)
    found = fit_projection(np.split(frames, [100, 101, 300]), 3)
    theirs = PCA(3).fit(frames.astype(np.float64))
    expected = theirs.transform(frames.astype(np.float64))
    signs = np.sign((found(frames) * expected).sum(0))
    np.testing.assert_allclose(found(frames) * signs, expected, atol=2e-3)
    assert found(frames).dtype == np.float32
    np.testing.assert_allclose(found(frames).std(0), expected.std(0), rtol=1e-4)  # not whitened
    np.testing.assert_allclose(
        found(frames), frames @ found.matrix + found.offset, rtol=1e-6, atol=1e-6
    )


def test_pca_of_too_little() -> None:
    with pytest.raises(ConfigError, match=r"PCA to 6 channels .* have 5"):
        fit_projection([blobs(10)[0]], 6)
    with pytest.raises(ConfigError, match="there are none"):
        fit_projection([], 6)


def test_a_sample_is_of_whole_utterances_and_keyed(tmp_path: Path) -> None:
    with FeatureStoreWriter(tmp_path / "s", 1, "float32") as writer:
        for i in range(50):
            writer.add(str(i), np.full((10, 1), i))
    store = FeatureStore(tmp_path / "s")
    everything, num = sample(store, 500, 0)
    assert (num, everything.shape) == (50, (500, 1))
    some, num = sample(store, 209, 0)
    assert (num, len(some)) == (20, 200)
    assert {*np.unique(some, return_counts=True)[1]} == {10}
    assert (sample(store, 209, 0)[0] == some).all()
    assert not np.array_equal(sample(store, 209, 1)[0], some)
    assert sample(store, 3, 0)[1] == 1  # one at least


def test_mfccs_are_39_numbers_every_10_ms() -> None:
    wave = talk(16_000, 1)
    found = mfcc_targets.mfcc(wave)
    assert found.shape == (98, 39)
    base = found[:, :13].astype(np.float64)
    # Kaldi's differences: sum of k (x[t + k] - x[t - k]) / 10 for k = 1, 2; edges repeated
    for columns, of in ((found[:, 13:26], base), (found[:, 26:], found[:, 13:26])):
        padded = np.pad(np.asarray(of, np.float64), ((2, 2), (0, 0)), "edge")
        slow = [
            (padded[t + 3] - padded[t + 1] + 2 * (padded[t + 4] - padded[t])) / 10
            for t in range(98)
        ]
        np.testing.assert_allclose(columns, slow, atol=1e-3)
    louder = mfcc_targets.mfcc(4 * wave)  # C0 and no other coefficient tells how loud it is
    shift = (louder - found)[5:-5]
    assert np.median(np.abs(shift[:, 1:13])) < 0.001 * shift[:, 0].min()


@given(num_samples=st.integers(0, 20_000))
@settings(deadline=None, max_examples=30)
def test_every_second_mfcc_is_a_frame_of_the_model(num_samples: int) -> None:
    config, wave = Wav2Vec2Config(), talk(20_000, 2)[:num_samples]
    clusters = Clusters(np.random.default_rng(0).standard_normal((5, 39)).astype(np.float32))
    num_frames = config.num_frames(num_samples)
    all_ids = clusters.assign(mfcc_targets.mfcc(wave))
    found = mfcc_targets.targets(wave, clusters, num_frames, config.total_stride)
    assert found.tolist() == all_ids[::2].tolist()
    assert len(found) == num_frames


def test_targets_of_other_strides() -> None:
    wave, clusters = talk(16_000, 3), Clusters(np.eye(3, 39, dtype=np.float32))
    found = mfcc_targets.targets(wave, clusters, 60, 320)
    assert found.tolist()[49:] == [-1] * 11
    mfcc_targets.check_stride(640)
    with pytest.raises(ConfigError, match="15 ms apart"):
        mfcc_targets.check_stride(240)

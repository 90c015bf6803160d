"""Masks and distractors: the reference implementation's draws, distributions and invariants."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from w2v2dist.model import Wav2Vec2Config, channel_mask, distractor_positions, span_mask

CONFIG = Wav2Vec2Config()
# With freshly chosen seeds a correct implementation fails each of the statistical comparisons below
# at a rate of at most 1e-6, and any of the 42 at a rate under 2e-5 (the seeds are fixed, so the
# tests do not flicker).
KS_1E6 = 2.69  # sqrt(-ln(1e-6 / 2) / 2)
SIGMAS = 5.0  # 5.7e-7, both sides


def ks_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Largest distance of two empirical distributions, in units of its null standard size."""
    points = np.union1d(a, b)
    cdf_a = np.searchsorted(np.sort(a), points, side="right") / len(a)
    cdf_b = np.searchsorted(np.sort(b), points, side="right") / len(b)
    return float(np.abs(cdf_a - cdf_b).max() / np.sqrt(1 / len(a) + 1 / len(b)))


def fractions(folder: Path, name: str) -> NDArray[np.float64]:
    with safe_open(folder / "mask_fractions.safetensors", "np") as file:
        return np.asarray(file.get_tensor(name), np.float64)


def test_same_draws_as_the_reference(golden_dir: Path) -> None:
    """With the reference's generator for each row the masks are its masks, frame for frame."""
    with safe_open(golden_dir / "mask_draws.safetensors", "np") as file:
        info = json.loads(file.metadata()["json"])
        for name in ("pad_ragged_ep1", "pad_ragged_ep2"):
            expected = file.get_tensor(name)
            for row, seed in enumerate(info["draws"][name]["seeds"]):
                num_frames = info["lens"][row]
                mask = span_mask(np.random.default_rng(seed), num_frames, 1, CONFIG)
                np.testing.assert_array_equal(mask[0], expected[row, :num_frames])


def test_fractions_of_single_rows(golden_dir: Path) -> None:
    rng = np.random.default_rng(0)
    ours = np.array([span_mask(rng, 780, 1, CONFIG).mean() for _ in range(1000)])
    assert ks_distance(ours, fractions(golden_dir, "fairseq_static_overlap")) < KS_1E6
    other = fractions(golden_dir, "fairseq_normal_other3")  # the comparison can tell masks apart
    assert ks_distance(other, fractions(golden_dir, "fairseq_no_overlap_minspace0")) > 2 * KS_1E6


def test_fractions_of_batches(golden_dir: Path) -> None:
    """Rows trimmed to the smallest of 8: fewer frames than without, as in the reference."""
    rng = np.random.default_rng(1)
    ours = np.array([span_mask(rng, 780, 8, CONFIG)[0].mean() for _ in range(1000)])
    reference = fractions(golden_dir, "fairseq_static_batch8_same_masks")[::8]
    assert ks_distance(ours, reference) < KS_1E6
    untrimmed = fractions(golden_dir, "hf_static_batch8")[::8]
    assert ks_distance(ours, untrimmed) > 2 * KS_1E6


def test_fractions_of_padded_rows(golden_dir: Path) -> None:
    rng = np.random.default_rng(2)
    ours = np.array([span_mask(rng, [780, 500], 2, CONFIG)[0].mean() for _ in range(1000)])
    reference = fractions(golden_dir, "fairseq_static_pad500_batch2")[::2]
    assert ks_distance(ours, reference) < KS_1E6


def test_positions_and_runs(golden_dir: Path) -> None:
    reference = json.loads((golden_dir / "mask_stats.json").read_text())["fairseq_static_overlap"]
    rng = np.random.default_rng(3)
    masks = np.concatenate([span_mask(rng, 780, 1, CONFIG) for _ in range(1000)])
    ours = np.concatenate([masks[:, :5].mean(0), masks[:, -12:].mean(0)])
    theirs = np.array(reference["pos_first5"] + reference["pos_last12"])
    sigma = np.sqrt(2 * theirs * (1 - theirs) / 1000)
    assert (np.abs(ours - theirs) <= SIGMAS * sigma).all()
    edges = np.diff(np.pad(masks, ((0, 0), (1, 1))).astype(int), axis=1)
    runs = np.argwhere(edges == -1)[:, 1] - np.argwhere(edges == 1)[:, 1]
    assert runs.min() >= 10
    error = SIGMAS * reference["runs_std"] * np.sqrt(2 / 1000)
    assert abs(len(runs) / 1000 - reference["runs_mean"]) < error


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    prob=st.floats(0.0, 1.0),
    span=st.integers(1, 20),
)
def test_rows_are_equal_and_padding_stays(
    seed: int, sizes: list[int], prob: float, span: int
) -> None:
    config = Wav2Vec2Config(mask_prob=prob, mask_span_length=span)
    mask = span_mask(np.random.default_rng(seed), sizes, len(sizes), config)
    assert mask.shape == (len(sizes), max(sizes))
    assert len(set(mask.sum(1).tolist())) == 1
    for row, size in zip(mask, sizes, strict=True):
        assert not row[size:].any()
        assert row.sum() < size
    again = span_mask(np.random.default_rng(seed), sizes, len(sizes), config)
    np.testing.assert_array_equal(mask, again)
    if min(sizes) > 2 * span and prob > 0:
        assert mask.any()


def test_wrong_number_of_rows() -> None:
    with pytest.raises(ValueError, match="num_frames has 2 entries but the batch has 3 rows"):
        span_mask(np.random.default_rng(0), [10, 20], 3, CONFIG)


def test_channel_masks() -> None:
    rng = np.random.default_rng(4)
    assert not channel_mask(rng, 2, CONFIG).any()
    config = Wav2Vec2Config(channel_mask_prob=0.5)
    masks = channel_mask(rng, 400, config)
    assert masks.shape == (400, 768)
    assert len(set(masks.sum(1).tolist())) == 1
    single = np.mean([channel_mask(rng, 1, config).mean() for _ in range(400)])
    # 6 or 7 of 704 starts of 64 channels: the chance that a channel is in none of the spans
    assert 0.3 < single < 0.5


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_masked=st.integers(0, 50),
    batch=st.integers(1, 4),
    num_distractors=st.integers(1, 120),
)
def test_distractors_are_other_frames(
    seed: int, num_masked: int, batch: int, num_distractors: int
) -> None:
    drawn = distractor_positions(np.random.default_rng(seed), num_masked, batch, num_distractors)
    count = num_distractors if num_masked > 1 else 0
    assert drawn.shape == (batch, num_masked, count)
    assert (drawn != np.arange(num_masked)[:, None]).all()
    assert ((drawn >= 0) & (drawn < max(1, num_masked))).all()


def test_distractors_are_uniform() -> None:
    drawn = distractor_positions(np.random.default_rng(5), 20, 500, 100)
    for own in range(20):
        counts = np.bincount(drawn[:, own].ravel(), minlength=20)
        assert counts[own] == 0
        others = np.delete(counts, own)
        chi2 = ((others - others.mean()) ** 2 / others.mean()).sum()
        assert (chi2 - 18) / np.sqrt(2 * 18) < 8  # 2.1e-7 for chi-squared of 18 degrees


def test_distractors_of_the_reference(golden_dir: Path) -> None:
    """Where among the other masked frames the reference's distractors lie, and ours."""
    rng = np.random.default_rng(6)
    counts = np.zeros((2, 10), np.int64)  # tenths of the other frames, in their order
    with safe_open(golden_dir / "default_postln_trajectory.safetensors", "np") as file:
        for update, mask in enumerate(file.get_tensor("masks")):
            batch, num_masked = len(mask), int(mask[0].sum())
            flat = file.get_tensor(f"negatives.{update:02d}").reshape(batch, num_masked, -1)
            theirs = flat - np.arange(batch)[:, None, None] * num_masked
            own = np.arange(num_masked)[:, None]
            ours = distractor_positions(rng, num_masked, batch, theirs.shape[2])
            for row, drawn in enumerate((theirs, ours)):
                assert (drawn != own).all()
                rank = drawn - (drawn > own)  # 0 … num_masked - 2
                counts[row] += np.bincount((rank * 10 // (num_masked - 1)).ravel(), minlength=10)
    assert counts[0].sum() == counts[1].sum() > 100_000
    chi2 = ((counts[0] - counts[1]) ** 2 / counts.sum(0)).sum()
    assert chi2 < 45  # 9.2e-7 for chi-squared of 9 degrees

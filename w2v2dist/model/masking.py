"""Span masks and distractor draws (section 3.1, appendix A) in numpy: pure functions of a
generator.

B batch, T frames, M masked frames of a row, K distractors, E width of the Transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from w2v2dist.model.config import Wav2Vec2Config


def _spans(
    rng: np.random.Generator, size: int, prob: float, span: int, min_spans: int
) -> NDArray[np.int64]:
    """Masked positions of one row of `size`, sorted; spans may overlap. Always leaves one position
    unmasked."""
    num_spans = max(min_spans, int(prob * size / span + rng.random()))
    if num_spans == 0 or size < 2:
        return np.zeros(0, np.int64)
    # starts leave room for a whole span, unless the row is too short to place all of them
    shortest = span if size - span > num_spans else size - num_spans - 1
    starts = rng.choice(size - shortest, num_spans, replace=False)
    positions = np.unique(starts[:, None] + np.arange(span))
    positions = positions[positions < size]
    if len(positions) == size:
        positions = rng.choice(positions, size - 1, replace=False)
    return positions


def _equal_rows(
    rng: np.random.Generator, rows: list[NDArray[np.int64]], width: int
) -> NDArray[np.bool_]:
    """(B, width) mask in which every row has as many positions as the row with the fewest."""
    count = min(map(len, rows), default=0)
    mask = np.zeros((len(rows), width), np.bool_)
    for i, row in enumerate(rows):
        mask[i, row if len(row) == count else rng.choice(row, count, replace=False)] = True
    return mask


def span_mask(
    rng: np.random.Generator, num_frames: int | Sequence[int], batch: int, config: Wav2Vec2Config
) -> NDArray[np.bool_]:
    """Time mask (B, T), True where masked, the same count in every row; T is the largest of
    `num_frames`.

    `num_frames` is one number for all `batch` rows or one for each (padding is never masked). The
    reference implementation's draw: about mask_prob * frames / mask_span_length starts without
    replacement, spans that may overlap, at least `min_mask_spans`, then random removal down to the
    smallest row.
    """
    sizes = [num_frames] * batch if isinstance(num_frames, int) else list(num_frames)
    if len(sizes) != batch:
        raise ValueError(f"num_frames has {len(sizes)} entries but the batch has {batch} rows")
    width = max(sizes, default=0)
    if config.mask_prob == 0:
        return np.zeros((batch, width), np.bool_)
    span, min_spans = config.mask_span_length, config.min_mask_spans
    rows = [_spans(rng, size, config.mask_prob, span, min_spans) for size in sizes]
    return _equal_rows(rng, rows, width)


def channel_mask(rng: np.random.Generator, batch: int, config: Wav2Vec2Config) -> NDArray[np.bool_]:
    """Channel mask (B, E), True where a channel of the Transformer's input is zeroed (fine-tuning
    only)."""
    if config.channel_mask_prob == 0:
        return np.zeros((batch, config.embed_dim), np.bool_)
    prob, span = config.channel_mask_prob, config.channel_mask_length
    rows = [_spans(rng, config.embed_dim, prob, span, 0) for _ in range(batch)]
    return _equal_rows(rng, rows, config.embed_dim)


def distractor_positions(
    rng: np.random.Generator, num_masked: int, batch: int, num_distractors: int
) -> NDArray[np.int64]:
    """(B, M, K) uniform draws, with replacement, from the other M - 1 masked frames of the row.

    K is 0 where there is no other frame (M < 2).
    """
    if num_masked < 2:
        return np.zeros((batch, num_masked, 0), np.int64)
    draws = rng.integers(0, num_masked - 1, (batch, num_masked, num_distractors))
    return draws + (draws >= np.arange(num_masked)[:, None])

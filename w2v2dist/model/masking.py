"""Span masks and distractor draws (section 3.1, appendix A): pure functions of a numpy generator.
B batch, T frames, M masked frames of a row, K distractors, E width of the Transformer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from w2v2dist.model.config import Wav2Vec2Config

Mask = NDArray[np.bool_]


def _spans(
    rng: np.random.Generator, size: int, prob: float, span: int, min_spans: int
) -> NDArray[np.int64]:
    """Sorted masked positions of one row of `size`, never all of them; spans may overlap."""
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


def _mask(
    rng: np.random.Generator, sizes: list[int], width: int, prob: float, span: int, min_spans: int
) -> Mask:
    """(B, width) mask of spans, in every row as many positions as in the row with the fewest."""
    mask = np.zeros((len(sizes), width), np.bool_)
    if prob == 0:
        return mask
    rows = [_spans(rng, size, prob, span, min_spans) for size in sizes]
    count = min(map(len, rows), default=0)
    for i, row in enumerate(rows):
        mask[i, row if len(row) == count else rng.choice(row, count, replace=False)] = True
    return mask


def span_mask(
    rng: np.random.Generator, num_frames: int | Sequence[int], batch: int, config: Wav2Vec2Config
) -> Mask:
    """Time mask (B, T), True where masked, the same count in every row; T is the most frames.
    `num_frames` is one number for all `batch` rows or one for each (padding is never masked). The
    reference implementation's draw: about mask_prob * frames / mask_span_length starts without
    replacement, spans that may overlap, at least `min_mask_spans`, then random removal down to the
    smallest row."""
    sizes = [num_frames] * batch if isinstance(num_frames, int) else list(num_frames)
    if len(sizes) != batch:
        raise ValueError(f"num_frames has {len(sizes)} entries but the batch has {batch} rows")
    span, min_spans = config.mask_span_length, config.min_mask_spans
    return _mask(rng, sizes, max(sizes, default=0), config.mask_prob, span, min_spans)


def channel_mask(rng: np.random.Generator, batch: int, config: Wav2Vec2Config) -> Mask:
    """Mask (B, E), True where a channel of the Transformer's input is zeroed (fine-tuning only)."""
    prob, span, width = config.channel_mask_prob, config.channel_mask_length, config.embed_dim
    return _mask(rng, [width] * batch, width, prob, span, 0)


def distractor_positions(
    rng: np.random.Generator, num_masked: int, batch: int, num_distractors: int
) -> NDArray[np.int64]:
    """(B, M, K) uniform draws, with replacement, from the other M - 1 masked frames of the row; K
    is 0 where there is no other frame (M < 2)."""
    if num_masked < 2:
        return np.zeros((batch, num_masked, 0), np.int64)
    draws = rng.integers(0, num_masked - 1, (batch, num_masked, num_distractors))
    draws += draws >= np.arange(num_masked)[:, None]
    return draws

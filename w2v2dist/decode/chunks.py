"""Recordings of any length through a model: overlapping chunks, of which the middles are kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from w2v2dist.data.audio import SAMPLE_RATE, Waveform, normalize
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC

CHUNK_S = 30.0  # that a chunk contributes
CONTEXT_S = 5.0  # that it hears beside that, on both sides


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a recording: its samples with context, and which of its frames are kept."""

    waveform: Waveform
    first: int
    last: int | None  # + 1; None: to the end


def chunks(waveform: Waveform, config: Wav2Vec2Config) -> Iterator[Chunk]:
    """The chunks of a recording (S,), whose kept frames laid end to end are those of the whole;
    none of one that is shorter than a frame. A recording of one chunk is heard as a whole."""
    stride = config.total_stride
    step, context = (round(s * SAMPLE_RATE / stride) for s in (CHUNK_S, CONTEXT_S))  # frames
    total = config.num_frames(len(waveform))
    starts = [*range(0, total, step)]
    if len(starts) > 1 and total - starts[-1] < context:  # too little to be heard alone
        starts.pop()
    for number, start in enumerate(starts):
        last = total if number == len(starts) - 1 else start + step
        low, high = max(0, start - context), min(total, last + context)
        end = len(waveform) if high == total else (high - 1) * stride + config.receptive_field
        yield Chunk(waveform[low * stride : end], start - low, last - low)


@torch.no_grad()
def log_probs(
    model: Wav2Vec2ForCTC, parts: list[Chunk], normalized: bool, device: torch.device
) -> list[Tensor]:
    """Log-probabilities (frames kept, num_tokens) of chunks of one length, on the CPU. Each chunk
    is normalised by itself, so that what it says depends on no other."""
    waves = [normalize(part.waveform) if normalized else part.waveform for part in parts]
    batch = torch.from_numpy(np.stack(waves)).to(device)
    out = model(batch).logits.float().log_softmax(-1).cpu()
    return [row[part.first : part.last] for row, part in zip(out, parts, strict=True)]

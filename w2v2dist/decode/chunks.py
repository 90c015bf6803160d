"""Recordings of any length through a model: overlapping chunks, of which the middles are kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from w2v2dist.data.audio import SAMPLE_RATE, SILENCE, Waveform, normalize
from w2v2dist.data.long_audio import LongAudio
from w2v2dist.interop.open import OpenedModel
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC

WHOLE_S = 60.0  # a recording of so many seconds is heard as a whole
CHUNK_S = 30.0  # that a chunk of a longer one contributes
CONTEXT_S = 5.0  # that it hears beside that, on both sides
BATCH = 8  # chunks at a time on a GPU
NEVER = -30.0  # log-probability of any symbol where there is no signal

Sound = Waveform | LongAudio  # a recording (S,) at 16 kHz


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a recording: its samples with context, and which of its frames are kept."""

    waveform: Waveform
    first: int
    last: int | None  # + 1; None: to the end


def chunks(sound: Sound, config: Wav2Vec2Config) -> Iterator[Chunk]:
    """The chunks of a recording (S,), whose kept frames laid end to end are those of the whole;
    none of one that is shorter than a frame. One of up to WHOLE_S is heard as a whole."""
    stride = config.total_stride
    step, context = (round(s * SAMPLE_RATE / stride) for s in (CHUNK_S, CONTEXT_S))  # frames
    total = config.num_frames(len(sound))
    whole = len(sound) <= WHOLE_S * SAMPLE_RATE
    starts = [*range(0, total, max(1, total) if whole else step)]
    if len(starts) > 1 and total - starts[-1] < context:  # too little to be heard alone
        starts.pop()
    for number, start in enumerate(starts):
        last = total if number == len(starts) - 1 else start + step
        low, high = max(0, start - context), min(total, last + context)
        end = len(sound) if high == total else (high - 1) * stride + config.receptive_field
        yield Chunk(sound[low * stride : end], start - low, last - low)


def heard(
    sound: Sound, config: Wav2Vec2Config, normalized: bool, device: torch.device
) -> Iterator[tuple[Tensor, slice]]:
    """Each chunk as a model takes it, (1, S), and which of its frames are kept. It is normalised by
    itself, so that what it says depends on no other."""
    for part in chunks(sound, config):
        wave = normalize(part.waveform) if normalized else part.waveform
        batch = torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None]
        yield batch.to(device), slice(part.first, part.last)


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


def hear(
    opened: OpenedModel, sound: Sound, told: Callable[[float], None] = lambda seconds: None
) -> Iterator[Tensor]:
    """The log-probabilities (frames, num_tokens) of a recording, a chunk at a time, on the CPU;
    `told` hears the seconds that are done. Where a chunk is silent, all its samples the same, it is
    blank for certain: a model makes anything of zeros. Raises ConfigError for a model without
    outputs of text."""
    model, alphabet, normalized = opened.recogniser()
    device = next(model.parameters()).device
    num_frames = 0
    for batch in _batches(sound, model, BATCH if device.type == "cuda" else 1):
        found = log_probs(model, batch, normalized, device)
        for part, row in zip(batch, found, strict=True):
            if np.ptp(part.waveform) < SILENCE:
                row = torch.full_like(row, NEVER)
                row[:, alphabet.blank] = 0.0
            yield row
            num_frames += len(row)
        told(num_frames * model.config.total_stride / SAMPLE_RATE)


def _batches(sound: Sound, model: Wav2Vec2ForCTC, most: int) -> Iterator[list[Chunk]]:
    """Chunks in order, together where they are of one length: nothing is padded."""
    batch: list[Chunk] = []
    for chunk in chunks(sound, model.config):
        if batch and (len(batch) == most or len(batch[0].waveform) != len(chunk.waveform)):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch

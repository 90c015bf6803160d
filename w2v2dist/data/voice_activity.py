"""Where somebody speaks, by the voice activity detector of WebRTC. S samples, N decisions."""

import numpy as np
import webrtcvad
from numpy.typing import NDArray

from w2v2dist.data.audio import SAMPLE_RATE, Waveform

Flags = NDArray[np.bool_]


def voiced(waveform: Waveform, mode: int, frame: int) -> Flags:
    """Whether each `frame` samples (10, 20 or 30 ms) of (S,) at 16 kHz are speech (N,), without a
    shorter rest; `mode` is from 0, which takes most for speech, to 3."""
    vad = webrtcvad.Vad(mode)
    num, size = len(waveform) // frame, 2 * frame
    pcm = (np.clip(waveform[: num * frame], -1, 1) * 32767).astype("<i2").tobytes()
    flags = (vad.is_speech(pcm[i * size : (i + 1) * size], SAMPLE_RATE) for i in range(num))
    return np.fromiter(flags, bool, num)


def runs(flags: Flags) -> list[tuple[int, int]]:
    """The runs of True (N,): the first, and one after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))

"""Where long recordings are cut: our pieces of 2 to 35 s, and Libri-Light's of a minute."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from w2v2dist.data.audio import SAMPLE_RATE, BadSample, Waveform
from w2v2dist.data.voice_activity import runs, voiced

CUTS = ("vad", "librilight", "none")
MIN_PIECE = 2 * SAMPLE_RATE
MAX_PIECE = 35 * SAMPLE_RATE
MAX_PAUSE = SAMPLE_RATE
FRAME = 480  # 30 ms, webrtcvad's longest
STITCHED_S = 60.0  # of cut_by_vad.py --target_len_sec
BEYOND_S = 0.1  # a last segment may end so much after the file: both are rounded

Span = tuple[int, int]


def marked_speech(path: str) -> list[Span] | None:
    """Voice activity from a Libri-Light .json beside the audio, if it has any."""
    try:
        marked = json.loads(Path(path).with_suffix(".json").read_bytes())["voice_activity"]
        return [(round(a * SAMPLE_RATE), round(b * SAMPLE_RATE)) for a, b in marked] or None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def voice_activity(path: str, num_samples: int) -> list[tuple[float, float]]:
    """The segments in seconds of the .json beside a recording of Libri-Light. Raises BadSample
    where it is not there, is damaged, or tells of another recording."""
    file = Path(path).with_suffix(".json")
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise BadSample(f"no voice activity: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise BadSample("no voice activity: its metadata is not JSON") from None
    marked = content.get("voice_activity") if isinstance(content, dict) else None
    if not isinstance(marked, list) or not marked:
        raise BadSample("no voice activity: its metadata has no segments")
    before, last = 0.0, num_samples / SAMPLE_RATE
    for number, segment in enumerate(marked):
        where = f"voice activity, segment {number}"
        pair = segment if isinstance(segment, list) and len(segment) == 2 else []
        numbers = [x for x in pair if type(x) in (int, float) and abs(x) < math.inf]
        if len(numbers) != 2:
            raise BadSample(f"{where}: not two numbers of seconds")
        start, end = numbers
        if not 0 <= start < end:
            raise BadSample(f"{where}: it begins at {start:g} s and ends at {end:g} s")
        if start < before:
            raise BadSample(f"{where}: it begins at {start:g} s, before the end of the last one")
        if end > last + BEYOND_S:
            raise BadSample(f"{where}: it ends at {end:g} s but the recording has {last:.2f} s")
        before = end
    return [(float(start), float(end)) for start, end in marked]


def stitch(segments: list[tuple[float, float]], num_samples: int) -> list[list[Span]]:
    """Libri-Light's pieces: segments of speech one after the other, without what lies between them,
    until another would make more than a minute. One that is longer is a piece of its own."""
    pieces: list[list[Span]] = []
    seconds = 0.0
    for start, end in segments:
        if not pieces or (seconds > 0 and seconds + (end - start) > STITCHED_S):
            pieces.append([])
            seconds = 0.0
        span = (int(start * SAMPLE_RATE), min(int(end * SAMPLE_RATE), num_samples))
        pieces[-1].append(span)
        seconds += end - start
    return pieces


def cut(waveform: Waveform, speech: list[Span] | None = None) -> list[Span]:
    """Spans of 2 to 35 s that hold the speech of a long recording, without its long pauses.

    `speech`: spans known to be speech (None: found by webrtcvad). It is the VAD of WebRTC, with
    maintained wheels for every Python; at some 8,000 times real time it adds nothing to decoding,
    where a neural VAD at 40 times would take 1,500 core hours for Libri-Light, and finding pauses
    to cut at is all that is asked of it.
    """
    spans = find_speech(waveform) if speech is None else speech
    pieces: list[Span] = []
    for start, end in spans:
        start, end = max(0, start), min(end, len(waveform))
        if pieces:
            first, last = pieces[-1]
            near = start - last <= MAX_PAUSE or last - first < MIN_PIECE
            if near and end - first <= MAX_PIECE:
                pieces[-1] = (first, max(last, end))
                continue
            start = max(start, last)
        while end - start > MAX_PIECE:  # nobody breathes: cut where it is quietest
            latest = min(start + MAX_PIECE, end - MIN_PIECE)
            middle = _quietest(waveform, start + MAX_PIECE // 2, latest)
            pieces.append((start, middle))
            start = middle
        pieces.append((start, end))
    return [(start, end) for start, end in pieces if end - start >= MIN_PIECE]


def find_speech(waveform: Waveform) -> list[Span]:
    """Spans of speech by webrtcvad: 30 ms decisions, smoothed over 0.3 s and widened by 0.1 s."""
    flags = voiced(waveform, 2, FRAME)
    smooth = np.convolve(flags.astype(float), np.ones(11), mode="same") > 5
    margin, last = 3, len(flags)
    return [(max(0, a - margin) * FRAME, min(last, b + margin) * FRAME) for a, b in runs(smooth)]


def _quietest(waveform: NDArray[np.float32], start: int, end: int) -> int:
    """The middle of the quietest 0.1 s between two positions."""
    window = SAMPLE_RATE // 10
    num_windows = max(1, (end - start) // window)
    blocks = waveform[start : start + num_windows * window].reshape(num_windows, -1)
    return start + int(np.square(blocks).mean(axis=1).argmin()) * window + window // 2

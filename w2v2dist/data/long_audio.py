"""Recordings of any length: those of hours are read in pieces, under the rules of `load_any`."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from w2v2dist.data import containers
from w2v2dist.data.audio import (
    FILTER,
    OPPOSITE,
    RATES,
    SAMPLE_RATE,
    BadSample,
    Waveform,
    check_range,
    load_any,
    resample,
    usable_rate,
)

HELD_S = 300.0  # a recording of so many seconds is decoded at once
# Samples of each channel that are decoded at once, as many as load_any takes: at the seams between
# reads libsndfile's MP3 decoder may differ
BLOCK = 1 << 20


class LongAudio:
    """A recording (S,) at 16 kHz in its file: its length, and slices, whose samples are those of
    `load_any`. In memory is what the last slice needed: they should begin one after another."""

    def __init__(self, path: Path, file: soundfile.SoundFile) -> None:
        """Read the file once. Raises BadSample where `load_any` would."""
        self._path, self._file = path, file
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise BadSample(f"its header states {file.samplerate} Hz: no recording has that rate")
        self._stated, self._channel = self._checked(containers.cut_short(path, file))
        rate = usable_rate(file.samplerate)
        common = math.gcd(rate, SAMPLE_RATE)
        self._old, self._new = rate // common, SAMPLE_RATE // common
        base = min(self._old, self._new) * FILTER["rolloff"]
        self._reach = math.ceil(FILTER["lowpass_filter_width"] * self._old / base)  # of the filter
        self._rewind()

    def __len__(self) -> int:
        return -(-self._stated * self._new // self._old)

    def __getitem__(self, part: slice) -> Waveform:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"a recording is read in order, not every {step}th sample")
        if stop <= start:
            return np.zeros(0, np.float32)
        if self._old == self._new:
            return self._samples(start, stop)
        # The filter yields `new` samples from each `old`, with its reach on both sides
        low, high = start // self._new, -(-stop // self._new)
        low = max(0, low - -(-self._reach // self._old))
        end = min(self._stated, high * self._old + self._reach)
        out = resample(self._samples(low * self._old, end), self._file.samplerate)
        return out[start - low * self._new : stop - low * self._new]

    def _rewind(self) -> None:
        self._file.seek(0)
        self._at, self._held = 0, np.zeros(0, np.float32)  # position of the held samples, they

    def _samples(self, start: int, stop: int) -> Waveform:
        """Samples at the file's rate, of one channel."""
        if start < self._at:
            self._rewind()
        blocks, first, end = [self._held], self._at, self._at + len(self._held)
        while end < stop:
            block = self._file.read(BLOCK, "float32", always_2d=True)
            if not len(block):
                raise BadSample(f"truncated: {end} samples, fewer than it had before")
            blocks.append(self._mixed(block, self._channel))
            end += len(block)
            if end <= start:
                blocks, first = [], end
        held = np.concatenate(blocks)[start - first :]
        self._at, self._held = start, held
        return held[: stop - start].copy()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def _mixed(block: Any, channel: int | None) -> Waveform:
        columns = block.T  # numpy is ten times as fast along them
        if channel is not None or len(columns) == 1:
            return np.asarray(columns[channel or 0], np.float32)
        return np.asarray(sum(columns[1:], columns[0]) / np.float32(len(columns)), np.float32)

    def _checked(self, cut_short: bool) -> tuple[int, int | None]:
        """The number of samples at the file's rate, and the loudest channel where the channels
        cancel each other. Raises BadSample."""
        file, num, mixed_power = self._file, 0, 0.0
        power, peaks = np.zeros(file.channels), np.zeros(1 + file.channels, np.float32)
        while len(block := file.read(BLOCK, "float32", always_2d=True)):
            mixed = self._mixed(block, None)
            num += len(block)
            power += [_power(column) for column in block.T]
            mixed_power += _power(mixed)
            here = [max(wave.max(), -wave.min()) for wave in (mixed, *block.T)]
            peaks = np.maximum(peaks, np.asarray(here, np.float32))  # NaN stays
        if cut_short or num < file.frames:
            raise BadSample(f"truncated: {num} samples, fewer than its header states")
        opposite = file.channels > 1 and mixed_power < OPPOSITE * power.max()
        channel = int(power.argmax()) if opposite else None
        check_range(peaks[[0 if channel is None else 1 + channel]])
        return num, channel


def _power(wave: Waveform) -> float:
    return float(np.square(wave, dtype=np.float64).sum())


@contextlib.contextmanager
def open_audio(path: str | Path) -> Iterator[Waveform | LongAudio]:
    """A recording (S,) at 16 kHz, in memory where it is short. Raises BadSample, as `load_any`."""
    long = _long(Path(path))
    if long is None:
        yield load_any(path)
        return
    with contextlib.closing(long):
        yield long


def _long(path: Path) -> LongAudio | None:
    """None of a file that is to be read at once: a short one, and one that cannot be opened, whose
    header does not say what is in it, or that was joined of several."""
    try:
        file = soundfile.SoundFile(str(path))
        short = file.frames <= HELD_S * file.samplerate or containers.no_length(path, file)
        if short or containers.unfinished(path) is not None or containers.parts(path):
            file.close()
            return None
        return LongAudio(path, file)
    except BadSample:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return None

"""Recordings that stand in for speech where there is none: noise through a slow filter, with the
loudness of syllables and pauses, of 10 to 16 s as LibriSpeech's. FLAC makes 17 kB of a second (of
LibriSpeech 18.6), so reading and decoding cost what they do of speech."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import soundfile

from shards import build

RATE = 16_000


def write_recordings(folder: Path, count: int, seconds: tuple[float, float] = (10, 16)) -> Path:
    """`count` FLAC files and a text of two words for each; the same for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        size = int(rng.uniform(*seconds) * RATE)
        noise = rng.standard_normal(size + 7).astype(np.float32)
        smooth = np.convolve(noise, np.hanning(10)[1:-1] / 4.5, "valid")[:size]
        syllables = np.abs(np.interp(np.arange(size), *_loudness(rng, size)))
        wave = 0.05 * smooth * syllables + 2e-4 * noise[:size]
        soundfile.write(folder / f"noise-{number:05d}.flac", wave, RATE, subtype="PCM_16")
        (folder / f"noise-{number:05d}.txt").write_text("ONE TWO\n", encoding="utf-8")
    return folder


def _loudness(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in time, every 120 ms, and the loudness there: a tenth of them is a pause."""
    times = np.arange(0, size + 1_920, 1_920)
    return times, rng.gamma(2.0, 0.4, len(times)) * (rng.random(len(times)) > 0.1)


def build_shards(source: Path, output: Path, shard_mb: float = 8) -> Path:
    """Shards of a folder of recordings. Raises RuntimeError with the end of what build.py says."""
    said = io.StringIO()
    arguments = ["--input", str(source), "--output", str(output), "--shard-mb", str(shard_mb)]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = build.main(arguments)
    if code:
        raise RuntimeError(f"no shards could be made of {source}: {said.getvalue()[-300:]}")
    return output

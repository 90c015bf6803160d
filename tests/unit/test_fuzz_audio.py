"""Mutated audio files of every format: decoded, or refused as a bad sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.fuzz import EXAMPLES, fuzz
from tests.speech import talk
from w2v2dist.data.audio import BadSample, decode, load_any

FORMATS = {
    "WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "OPUS": "OPUS", "MP3": "MPEG_LAYER_III",
    "AIFF": "PCM_16", "AU": "PCM_16", "CAF": "PCM_16", "W64": "PCM_16", "NIST": "PCM_16",
}  # fmt: skip


def is_sound(waveform: Any) -> None:
    """What training may be given: finite, one channel, of a length that its file can hold."""
    assert waveform.ndim == 1
    assert waveform.dtype == np.float32
    assert np.isfinite(waveform).all()
    assert len(waveform) < 10_000_000


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("kind", FORMATS)
def test_audio_files(tmp_path: Path, kind: str, examples: int) -> None:
    bases = []
    for number, (channels, rate) in enumerate([(1, 16_000), (2, 24_000)]):
        wave = np.stack([talk(rate // 4, number)] * channels, 1)
        path = tmp_path / f"{number}.x"
        container = "OGG" if kind == "OPUS" else kind
        soundfile.write(path, wave, rate, format=container, subtype=FORMATS[kind])
        bases.append(path.read_bytes())

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        return load_any(path)

    fuzz(max(10, examples // 10), bases, read, (BadSample,), is_sound)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_members_of_shards(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, talk(8_000, 0), 16_000)
    fuzz(examples, [path.read_bytes()], decode, (BadSample,), is_sound)

"""Long recordings in pieces: the samples of `load_any`, and all that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from w2v2dist.data import containers, long_audio
from w2v2dist.data.audio import BadSample, load_any
from w2v2dist.data.long_audio import LongAudio, open_audio


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes in life takes seconds here."""
    monkeypatch.setattr(long_audio, "HELD_S", 1.0)
    monkeypatch.setattr(containers, "BLOCK", 4_096)


def sound(rate: int, channels: int, seconds: float = 4.0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(rate + channels)
    return rng.normal(0, 0.1, (int(rate * seconds) + 37, channels)).astype(np.float32)


CASES = [
    (16_000, 1, "FLAC"), (48_000, 2, "WAV"), (44_100, 2, "FLAC"), (8_000, 1, "WAV"),
    (22_050, 1, "MP3"), (44_100, 2, "MP3"), (48_000, 1, "OGG"), (12_347, 3, "WAV"),
]  # fmt: skip


@pytest.mark.parametrize(("rate", "channels", "kind"), CASES)
def test_slices_are_those_of_the_whole(tmp_path: Path, rate: int, channels: int, kind: str) -> None:
    soundfile.write(tmp_path / "a", sound(rate, channels), rate, format=kind)
    whole = load_any(tmp_path / "a")
    with open_audio(tmp_path / "a") as long:
        assert isinstance(long, LongAudio)
        assert len(long) == len(whole)
        for step, size in ((10_007, 10_007), (10_007, 20_011), (100_000, 100_000), (3_001, 5)):
            for at in range(0, len(whole), step):
                np.testing.assert_allclose(long[at : at + size], whole[at : at + size], atol=1e-6)
        np.testing.assert_allclose(long[:7], whole[:7], atol=1e-6)  # back to the start
        assert len(long[5:5]) == 0
        with pytest.raises(ValueError, match="in order"):
            long[::2]


def test_channels_that_cancel_each_other(tmp_path: Path) -> None:
    one = sound(16_000, 1)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([one / 2, -one / 2.001], 1), 16_000, "FLOAT")
    with open_audio(tmp_path / "a.wav") as long:
        np.testing.assert_array_equal(long[: len(long)], one / 2)


def test_short_and_joined_files_are_read_at_once(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(16_000, 1, 0.9), 16_000)
    with open_audio(tmp_path / "a.wav") as short:
        assert isinstance(short, np.ndarray)
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        content = b""
        for seconds in (2.0, 3.0):
            soundfile.write(tmp_path / "a", sound(16_000, 1, seconds), 16_000, format=kind)
            content += (tmp_path / "a").read_bytes()
        (tmp_path / "b").write_bytes(content)
        with open_audio(tmp_path / "b") as both:
            assert isinstance(both, np.ndarray)
            np.testing.assert_array_equal(both, load_any(tmp_path / "b"))
            assert len(both) > 5 * 16_000


@pytest.mark.parametrize(
    "kind", ["WAV", "FLAC", "AIFF", "AU", "W64", "NIST", "CAF", "MP3", "OGG", "OPUS", "RF64"]
)
def test_files_that_were_cut_short_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.x"
    container, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, None)
    soundfile.write(path, sound(16_000, 1), 16_000, format=container, subtype=subtype)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(BadSample, match=r"truncated|unreadable"), open_audio(path):
        pass


def test_samples_and_headers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for value, reason in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (9.0, "out of range")):
        wave = sound(16_000, 2)
        wave[60_000] = value
        soundfile.write(path, wave, 16_000, subtype="FLOAT")
        with pytest.raises(BadSample, match=reason), open_audio(path):
            pass
    soundfile.write(path, sound(1_000, 1), 1_000)
    with pytest.raises(BadSample, match="its header states 1000 Hz"), open_audio(path):
        pass
    path.write_bytes(b"RIFF")
    with pytest.raises(BadSample, match="unreadable"), open_audio(path):
        pass


def test_a_recorder_that_died(tmp_path: Path) -> None:
    """A WAV whose sizes were never written, and one of ffmpeg's to a pipe."""
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(16_000, 1), 16_000)
    data = bytearray(path.read_bytes())
    for size, kept in ((0, True), (0xFFFFFFFF, False)):
        data[4:8] = data[40:44] = size.to_bytes(4, "little")
        path.write_bytes(data)
        with open_audio(path) as found:
            assert isinstance(found, np.ndarray) == kept
            np.testing.assert_array_equal(found[: len(found)], load_any(path))

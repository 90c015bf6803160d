"""Decoding, conversion and the ways in which audio files are broken."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from w2v2dist.data.audio import (
    BadSample,
    Waveform,
    decode,
    flac_num_samples,
    load_any,
    normalize,
    to_flac,
)


@pytest.fixture
def noise() -> Waveform:
    """Two seconds of 16-bit noise."""
    pcm = np.random.default_rng(0).integers(-(2**15), 2**15, 32_000)
    return (pcm / 2**15).astype(np.float32)


def tone(rate: int, channels: int, seconds: float = 2.0) -> np.ndarray:
    """440 Hz, different loudness in each channel."""
    wave = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave * 0.4 * (c + 1) / channels for c in range(channels)], axis=1)


def test_flac_is_lossless_and_seekable(noise: Waveform) -> None:
    data = to_flac(noise)
    assert flac_num_samples(data[:26]) == 32_000
    np.testing.assert_array_equal(decode(data), noise)
    np.testing.assert_array_equal(decode(data, 12_345, 7_000), noise[12_345:19_345])
    np.testing.assert_array_equal(decode(data, 31_999), noise[31_999:])


def test_to_flac_clips() -> None:
    out = decode(to_flac(np.array([2.0, -2.0, 0.0], np.float32)))
    np.testing.assert_array_equal(out, np.array([32767 / 32768, -1, 0], np.float32))


def test_decode_refuses_what_is_not_there(noise: Waveform) -> None:
    data = to_flac(noise)
    with pytest.raises(BadSample, match="ends after 32000 samples but 33000 were expected"):
        decode(data, 30_000, 3_000)
    with pytest.raises(BadSample):
        decode(data[: len(data) // 2])
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode(b"not audio")
    wrong = io.BytesIO()
    soundfile.write(wrong, np.zeros((100, 2)), 8_000, format="FLAC")
    with pytest.raises(BadSample, match="8000 Hz and 2 channels"):
        decode(wrong.getvalue())


def test_normalize_is_layer_norm(noise: Waveform) -> None:
    for wave in (noise, noise * 1e-3 + 0.1, np.zeros(100, np.float32)):
        expected = torch.nn.functional.layer_norm(torch.from_numpy(wave), wave.shape).numpy()
        np.testing.assert_allclose(normalize(wave), expected, atol=2e-5)
        assert normalize(wave).dtype == np.float32


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 12_347])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path: Path, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate, channels), rate, subtype="FLOAT")
    out = load_any(tmp_path / "a.wav")
    assert abs(len(out) - 32_000) <= 32_000 * 0.001
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))))
    assert abs(np.argmax(spectrum) * 16_000 / len(out) - 440) < 1
    amplitude = 0.4 * (channels + 1) / (2 * channels)
    inner = out[4_000:-4_000]
    assert abs(np.sqrt(2 * np.mean(inner**2)) - amplitude) < 0.01 * amplitude


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "NIST", "OPUS"])
def test_formats(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.x"
    container, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind.upper(), None)
    soundfile.write(path, tone(16_000, 1), 16_000, format=container, subtype=subtype)
    out = load_any(path)
    assert abs(len(out) - 32_000) < 2_500  # MP3 and Opus pad
    spectrum = np.abs(np.fft.rfft(out))
    assert abs(np.argmax(spectrum) * 16_000 / len(out) - 440) < 2


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "AU", "W64", "NIST", "CAF", "MP3"])
def test_truncated_files_are_noticed(tmp_path: Path, noise: Waveform, kind: str) -> None:
    path = tmp_path / "a.x"
    soundfile.write(path, noise, 16_000, format=kind)
    load_any(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(BadSample, match=r"truncated|unreadable"):
        load_any(path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    with pytest.raises(BadSample, match=r"unreadable.*a\.wav"):
        load_any(path)
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(BadSample, match="empty"):
        load_any(path)
    soundfile.write(path, np.array([0.1, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(BadSample, match="NaN"):
        load_any(path)
    with pytest.raises(BadSample, match="unreadable"):
        load_any(tmp_path / "absent.wav")


def test_streamed_wav_of_unknown_size_is_whole(tmp_path: Path, noise: Waveform) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise, 16_000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # what ffmpeg writes to a pipe
    path.write_bytes(data)
    np.testing.assert_array_equal(load_any(path), noise)

"""Decoding, conversion and the ways in which audio files are broken."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

import miniaudio
import numpy as np
import pytest
import soundfile
import torch

from tests.speech import talk
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


@pytest.mark.parametrize("num_samples", [1, 7, 16_384, 16_385, 250_000, 600_001])
def test_normalize_has_the_bits_of_one_sum(num_samples: int) -> None:
    rng = np.random.default_rng(num_samples)
    wave = (0.3 + 0.1 * rng.standard_normal(num_samples)).astype(np.float32)
    centred = wave - wave.mean(dtype=np.float64)
    scale = math.sqrt(np.square(centred).mean() + 1e-5)
    expected = (centred / scale).astype(np.float32)
    np.testing.assert_array_equal(normalize(wave), expected)
    assert normalize(wave, wave) is wave
    np.testing.assert_array_equal(wave, expected)


def test_flac_has_the_same_samples_from_either_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = to_flac(talk(60_000, 1))
    theirs = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    calls = []
    read = miniaudio.flac_read_s16
    monkeypatch.setattr(miniaudio, "flac_read_s16", lambda d: calls.append(1) or read(d))
    np.testing.assert_array_equal(decode(data), theirs)
    np.testing.assert_array_equal(decode(data, 5_000, 50_000), theirs[5_000:55_000])
    assert len(calls) == 2
    np.testing.assert_array_equal(decode(data, 20_000, 10_000), theirs[20_000:30_000])
    assert len(calls) == 2  # a small crop is sought


def test_damaged_flac_is_as_bad_as_libflac_finds_it() -> None:
    """dr_flac leaves damaged frames out: what is behind them must not take their place."""
    good = to_flac(talk(60_000, 1))
    whole = decode(good)
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(42, len(good), 60).tolist():
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(rng.integers(8))
        for start, size in ((0, 60_000), (5_000, 50_000)):
            try:
                found = decode(bytes(damaged), start, size)
                np.testing.assert_array_equal(found, whole[start : start + size])
            except BadSample:
                refused += 1
    assert refused > 60
    with pytest.raises(BadSample):
        decode(good[: len(good) // 2])


def test_a_crop_costs_what_it_holds(noise: Waveform) -> None:
    data = to_flac(np.tile(noise, 60))
    seconds = []
    for span in ((0, 16_000 * 120), (16_000 * 60, 16_000 * 10)):
        started = time.process_time()
        for _ in range(3):
            decode(data, *span)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 0.5 * seconds[0]  # a twelfth of the samples


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


@pytest.mark.parametrize(
    "kind", ["WAV", "FLAC", "AIFF", "AU", "W64", "NIST", "CAF", "MP3", "OGG", "OPUS", "RF64"]
)
def test_truncated_files_are_noticed(tmp_path: Path, noise: Waveform, kind: str) -> None:
    path = tmp_path / "a.x"
    container, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, None)
    soundfile.write(path, noise / 4, 16_000, format=container, subtype=subtype)
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


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "OGG", "OPUS", "MP3"])
def test_joined_files_are_read_to_their_end(tmp_path: Path, noise: Waveform, kind: str) -> None:
    container, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, None)
    content = b""
    for name, wave in (("a", noise / 4), ("b", noise[:16_000] / 4), ("c", noise / 8)):
        path = tmp_path / name
        soundfile.write(path, wave, 16_000, format=container, subtype=subtype)
        content += path.read_bytes()
    each = [load_any(tmp_path / name) for name in "abc"]
    (tmp_path / "joined").write_bytes(content)
    np.testing.assert_array_equal(load_any(tmp_path / "joined"), np.concatenate(each))
    assert sum(map(len, each)) > 78_000


def test_lengths_that_headers_do_not_state(tmp_path: Path, noise: Waveform) -> None:
    """The decoded stream decides: MP3 without its first frame, FLAC to a pipe, WAV sizes."""
    pauses = np.concatenate([noise * 1e-3, np.zeros(40_000, np.float32), noise, noise])
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
    path = tmp_path / "a.mp3"
    soundfile.write(path, pauses / 4, 16_000, format="MP3", **options)
    whole, content = load_any(path), path.read_bytes()
    (second,) = {content.find(content[:2], 20 + at) for at in (0,)}  # behind the frame with Xing
    path.write_bytes(content[second:])
    assert abs(len(load_any(path)) - len(whole)) < 2 * 1_152
    path = tmp_path / "a.flac"
    soundfile.write(path, noise, 16_000)
    flac = bytearray(path.read_bytes())
    flac[21] &= 0xF0
    flac[22:42] = bytes(20)
    path.write_bytes(flac)
    np.testing.assert_array_equal(load_any(path), noise)
    path = tmp_path / "a.wav"
    soundfile.write(path, noise, 16_000)
    riff = bytearray(path.read_bytes())
    riff[4:8] = len(riff).to_bytes(4, "little")  # the file's length, not that of the rest
    path.write_bytes(riff)
    np.testing.assert_array_equal(load_any(path), noise)
    riff[4:8], riff[40:44] = (36).to_bytes(4, "little"), bytes(4)  # the recorder died
    path.write_bytes(riff)
    np.testing.assert_array_equal(load_any(path), noise)


def test_values_that_are_not_what_they_seem(tmp_path: Path, noise: Waveform) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise * 32_767, 16_000, subtype="FLOAT")
    with pytest.raises(BadSample, match=r"out of range: .* divide them by 32768"):
        load_any(path)
    soundfile.write(path, noise * 1.5, 16_000, subtype="FLOAT")  # a loud mix
    np.testing.assert_allclose(load_any(path), noise * 1.5)
    opposite = np.stack([noise, -noise * 0.995], axis=1)
    soundfile.write(path, opposite / 2, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_any(path), noise / 2)  # the louder channel
    soundfile.write(path, np.stack([noise / 2, noise / 4], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_any(path), noise * 0.375)


def test_segments(tmp_path: Path, noise: Waveform) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise, 16_000)
    np.testing.assert_array_equal(load_any(path, 0.5, 1.0), noise[8_000:24_000])
    np.testing.assert_array_equal(load_any(path, 1.5), noise[24_000:])
    np.testing.assert_array_equal(load_any(path, 1.5, 0.51), noise[24_000:])  # rounded
    for offset, duration in ((2.5, None), (1.5, 2.0), (-1.0, 1.0)):
        with pytest.raises(BadSample, match="out of range: a segment from"):
            load_any(path, offset, duration)


def test_unreadable_files_name_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    with pytest.raises(BadSample, match="without a header has no rate: convert it to WAV"):
        load_any(tmp_path / "a.raw")
    head = b"NIST_1A\n   1024\nsample_rate -i 16000\nchannel_count -i 1\nsample_n_bytes -i 2\n"
    head += b"sample_count -i 100\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    (tmp_path / "a.sph").write_bytes(head.ljust(1024) + b"ajkg\x02" + bytes(100))
    with pytest.raises(BadSample, match="SPHERE with the codec shorten: convert it with sph2pipe"):
        load_any(tmp_path / "a.sph")

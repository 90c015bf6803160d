"""Audio files and FLAC bytes to float32 waveforms, 16 kHz mono, and back."""

import contextlib
import io
import math
import re
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from w2v2dist.data import containers

SAMPLE_RATE = 16_000
RATES = (2_000, 768_000)  # of recordings, in Hz: beyond them a header is damaged
BLOCK = 1 << 22  # samples that are decoded at once
IN_CACHE = 1 << 14  # samples that are worked on at once, so that no pass goes to memory
SOUGHT = 0.6  # a crop of less than this part of a FLAC file is sought, not cut out of the whole
# Peak to peak, of a full scale of 2: a thirtieth of one step of 16 bits. What a microphone records
# has its own noise at least, however faint; under this is what a computer filled in: one value.
SILENCE = 1e-6

OPPOSITE = 1e-4  # of the loudest channel's power: less in the mean of the channels is cancelled
LOUDEST = 8.0  # of full scale 1: floats of a loud mix go beyond 1, not so far

FILTER = {"lowpass_filter_width": 64, "rolloff": 0.99}  # of the resampling
# What people have and libsndfile does not read, by its first bytes (from, to)
WITH_VIDEO = {(b"ftyp", 4): "MP4, MOV or M4A", (b"\x1aE\xdf\xa3", 0): "Matroska or WebM"}
WITH_VIDEO |= {(b"AVI ", 8): "AVI", (b"\x30\x26\xb2\x75", 0): "WMA or WMV"}
WITH_VIDEO |= {(b"#!AMR", 0): "AMR", (b"\xff\xf1", 0): "AAC", (b"\xff\xf9", 0): "AAC"}
TAKE_SOUND = "ffmpeg -i {} -vn -ac 1 -ar 16000 {}.wav"

Waveform = NDArray[np.float32]


class BadSample(ValueError):  # noqa: N818
    """Audio that cannot be used: unreadable, truncated, empty, or not in the expected form."""


class ReadError(BadSample):
    """The storage failed, or the shard is not what the index says: the audio itself may be good."""


def decode(data: bytes, start: int = 0, num_samples: int | None = None) -> Waveform:
    """Decode `num_samples` (None: all) from sample `start` on of a 16 kHz mono file held in memory:
    (S,) float32 in [-1, 1]. Raises BadSample where fewer samples can be had."""
    if (whole := _whole_flac(data, num_samples)) is not None:
        stop = None if num_samples is None else start + num_samples
        if len(whole) >= (stop or start):
            return whole[start:stop] * np.float32(2**-15)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.samplerate != SAMPLE_RATE or file.channels != 1:
                raise BadSample(
                    f"audio has {file.samplerate} Hz and {file.channels} channels but must be "
                    f"{SAMPLE_RATE} Hz mono: build the shards with shards/build.py"
                )
            wanted = file.frames - start if num_samples is None else num_samples
            if start:
                file.seek(start)
            # In blocks: a damaged header may state more samples than there is memory for
            blocks = [file.read(min(BLOCK, wanted), dtype="float32")]
            while len(blocks[-1]) == BLOCK and (left := wanted - BLOCK * len(blocks)) > 0:
                blocks.append(file.read(min(BLOCK, left), dtype="float32"))
            waveform: Waveform = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    except soundfile.SoundFileError as error:
        raise BadSample(f"audio cannot be decoded: {error}") from None
    if len(waveform) != wanted:
        end = start + len(waveform)
        raise BadSample(f"audio ends after {end} samples but {start + wanted} were expected")
    return waveform


def _whole_flac(data: bytes, num_samples: int | None) -> NDArray[np.int16] | None:
    """All samples of a 16 kHz mono 16-bit FLAC file as dr_flac decodes them: the same numbers in
    0.6 of libFLAC's time. None where that is not known to be so (another format, long, damaged: it
    leaves out damaged frames), or where only a part of it is wanted, which can be sought."""
    if len(data) < 42 or data[:4] != b"fLaC":
        return None
    stated = int.from_bytes(data[18:26], "big")  # rate, channels - 1, bits - 1, samples
    length = stated & (1 << 36) - 1
    if stated >> 36 != (SAMPLE_RATE << 8 | 15) or not 0 < length <= BLOCK:
        return None
    if num_samples is not None and num_samples < SOUGHT * length:
        return None
    import miniaudio  # late: most commands decode nothing

    try:
        decoded = miniaudio.flac_read_s16(data)
    except miniaudio.DecodeError:
        return None
    return np.frombuffer(decoded.samples, np.int16) if len(decoded.samples) == length else None


def check_signal(waveform: Waveform) -> None:
    """Raise BadSample where (S,) has NaN or infinite samples, or is silent: normalised it is all
    zeros, every masked frame equals its distractors, and nothing can be learned from it."""
    # Two passes that allocate nothing; NaN is the least and the largest wherever there is one
    low, high = (waveform.min(), waveform.max()) if len(waveform) else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadSample("contains NaN or infinite samples")
    if high - low < SILENCE:
        raise BadSample(f"is silent: all {len(waveform)} samples that are used are the same")


def normalize(waveform: Waveform, out: Waveform | None = None) -> Waveform:
    """Zero mean and unit variance over all samples, as torch's layer_norm does (eps 1e-5); in
    float64. `out` may be the waveform itself."""
    mean = waveform.mean(dtype=np.float64)
    scale = math.sqrt(_sum_of_squares(waveform, mean) / max(1, len(waveform)) + 1e-5)
    out = np.empty_like(waveform) if out is None else out
    for first in range(0, len(waveform), IN_CACHE):
        part = slice(first, first + IN_CACHE)
        np.divide(waveform[part] - mean, scale, out=out[part], casting="same_kind")
    return out


def _sum_of_squares(waveform: Waveform, mean: np.float64) -> float:
    """Of the differences from the mean. Halves are added as numpy's pairwise summation adds them,
    so the bits are those of one sum, without arrays of the size of the waveform: the memory of new
    ones costs more than the arithmetic."""
    if len(waveform) <= IN_CACHE:
        return float(np.square(waveform - mean).sum())
    half = len(waveform) // 2 // 8 * 8
    return _sum_of_squares(waveform[:half], mean) + _sum_of_squares(waveform[half:], mean)


def to_flac(waveform: Waveform) -> bytes:
    """(S,) float32 in [-1, 1] to a 16-bit 16 kHz FLAC file; exact for 16-bit sources."""
    # libsndfile writes floats times 32767, but divides by 32768 when it reads.
    pcm = np.clip(np.rint(waveform * np.float32(32768)), -32768, 32767).astype(np.int16)
    out = io.BytesIO()
    soundfile.write(out, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def flac_num_samples(head: bytes) -> int:
    """Number of samples that the first 26 bytes of a FLAC file state; 0 where they say nothing."""
    if len(head) < 26 or head[:4] != b"fLaC":
        raise BadSample("not a FLAC file")
    return ((head[21] & 15) << 32) | int.from_bytes(head[22:26], "big")


def load_any(
    path: str | Path, offset: float | None = None, duration: float | None = None
) -> Waveform:
    """Read a file of any format, rate and channel count that libsndfile knows: (S,) float32 at 16
    kHz, the mean of the channels; with `offset` the segment from there on, of `duration` seconds or
    to the end. Raises BadSample: unreadable, truncated, empty, not finite, out of range."""
    path = Path(path)
    try:
        joined = containers.parts(path) if offset is None else []
        if joined:
            return np.concatenate([_decoded(path, io.BytesIO(part)) for part in joined])
        return _decoded(path, containers.unfinished(path), offset, duration)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample(f"unreadable: {_why(path, error)}") from None


def _decoded(
    path: Path,
    content: io.BytesIO | None,
    offset: float | None = None,
    duration: float | None = None,
) -> Waveform:
    """The same of one file, or of what takes its place."""
    with soundfile.SoundFile(content or str(path)) as file:
        if content is None and (whole := containers.without_length(path, file)):
            return _decoded(path, whole, offset, duration)
        rate, stated = file.samplerate, file.frames
        if not RATES[0] <= rate <= RATES[1]:
            raise BadSample(f"its header states {rate} Hz: no recording of speech has that rate")
        cut_short = offset is None and content is None and containers.cut_short(path, file)
        left = math.inf if offset is None else _seek(file, offset, duration)
        waveform, loudest = _mix(file, left)
        if loudest is not None:  # the channels cancel each other
            file.seek(0)
            left = math.inf if offset is None else _seek(file, offset, duration)
            waveform, _ = _mix(file, left, loudest)
    if cut_short or (offset is None and len(waveform) < stated):
        raise BadSample(f"truncated: {len(waveform)} samples, fewer than its header states")
    if not len(waveform):
        raise BadSample("empty: no samples")
    check_range(waveform)
    return waveform if rate == SAMPLE_RATE else resample(waveform, rate)


def _mix(
    file: soundfile.SoundFile, left: float, channel: int | None = None
) -> tuple[Waveform, int | None]:
    """Up to `left` samples, the mean of the channels or one of them; and the loudest channel where
    they are opposite, so that their mean is next to nothing."""
    blocks, power, mixed = [], np.zeros(file.channels), 0.0
    while left and len(block := file.read(int(min(1 << 20, left)), "float32", always_2d=True)):
        one = channel if channel is not None else 0 if file.channels == 1 else None
        blocks.append(block.mean(axis=1) if one is None else block[:, one])
        power += np.square(block, dtype=np.float64).sum(axis=0)
        mixed += float(np.square(blocks[-1], dtype=np.float64).sum())
        left -= len(block)
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    opposite = channel is None and file.channels > 1 and mixed < OPPOSITE * power.max()
    return waveform, int(power.argmax()) if opposite else None


def check_range(waveform: Waveform) -> None:
    """Raise BadSample where samples are not finite or beyond full scale as no recording's are:
    floats in another unit, which 16 bits would clip to a square wave."""
    if not np.isfinite(waveform).all():
        raise BadSample("holds NaN or infinite samples")
    if (peak := float(np.abs(waveform).max())) > LOUDEST:
        raise BadSample(
            f"out of range: its loudest sample is {peak:g}, where full scale is 1. If they are in "
            "the range of 16 bits, divide them by 32768 (sox: vol 0.000030517578)"
        )


def _seek(file: soundfile.SoundFile, offset: float, duration: float | None) -> float:
    """Go to a segment; how many samples it has. Raises BadSample where it is not in the file."""
    rate, length = file.samplerate, file.frames / file.samplerate
    start = round(offset * rate)
    stop = file.frames if duration is None else start + round(duration * rate)
    if not 0 <= start < file.frames or stop > file.frames + rate // 2:  # rounded in the table
        end = "its end" if duration is None else f"{offset + duration:g} s"
        raise BadSample(f"out of range: a segment from {offset:g} s to {end}, of {length:.3f} s")
    file.seek(start)
    return float(min(stop, file.frames) - start)


def _why(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in words that name the remedy where there is one."""
    if isinstance(error, TypeError):  # of soundfile: it asks for the rate
        return "a file without a header has no rate: convert it to WAV"
    with contextlib.suppress(OSError), path.open("rb") as raw:
        head = raw.read(1024)
        for (magic, at), kind in WITH_VIDEO.items():
            if head[at : at + len(magic)] == magic:
                command = TAKE_SOUND.format(path.name, path.stem)
                return f"{kind}, which is not read: take its sound out ({command})"
        if head.startswith(b"NIST_1A") and (coding := re.search(rb"embedded-(\w+)", head)):
            return f"NIST SPHERE with the codec {coding[1].decode()}: convert it with sph2pipe"
    text = str(error).replace(str(path), path.name)
    convert = " (convert it with ffmpeg)" if "unimplemented" in text or "unknown" in text else ""
    return f"{text}{convert}"


def resample(waveform: Waveform, rate: int) -> Waveform:
    """(S,) float32 at `rate` Hz to 16 kHz, with torchaudio's windowed sinc filter."""
    import torch  # both take seconds to import, and most corpora are 16 kHz already
    from torchaudio.functional import resample as sinc_resample

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits whatever the number of cores and processes
    try:
        wave, rates = torch.from_numpy(waveform), (usable_rate(rate), SAMPLE_RATE)
        out = sinc_resample(wave, *rates, **FILTER)
    finally:
        torch.set_num_threads(num_threads)
    return np.asarray(out)


def usable_rate(rate: int) -> int:
    """The rate, or where it has no common factor with 16 kHz one that is 12 Hz off at most, under
    0.2 % of any: the filter would take gigabytes."""
    if rate // math.gcd(rate, SAMPLE_RATE) > 2_000:
        return max(25, 25 * round(rate / 25))
    return rate

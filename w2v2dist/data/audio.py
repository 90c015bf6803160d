"""Audio files and FLAC bytes to float32 waveforms, 16 kHz mono, and back."""

import io
import math
import re
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
# Peak to peak, of a full scale of 2: a thirtieth of one step of 16 bits. What a microphone records
# has its own noise at least, however faint; under this is what a computer filled in: one value.
SILENCE = 1e-6

Waveform = NDArray[np.float32]


class BadSample(ValueError):  # noqa: N818
    """Audio that cannot be used: unreadable, truncated, empty, or not in the expected form."""


class ReadError(BadSample):
    """The storage failed, or the shard is not what the index says: the audio itself may be good."""


def decode(data: bytes, start: int = 0, num_samples: int | None = None) -> Waveform:
    """Decode `num_samples` (None: all) from sample `start` on of a 16 kHz mono file held in memory:
    (S,) float32 in [-1, 1]. Raises BadSample where fewer samples can be had."""
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
            waveform: Waveform = file.read(wanted, dtype="float32")
    except soundfile.SoundFileError as error:
        raise BadSample(f"audio cannot be decoded: {error}") from None
    if len(waveform) != wanted:
        end = start + len(waveform)
        raise BadSample(f"audio ends after {end} samples but {start + wanted} were expected")
    return waveform


def check_signal(waveform: Waveform) -> None:
    """Raise BadSample where (S,) has NaN or infinite samples, or is silent: normalised it is all
    zeros, every masked frame equals its distractors, and nothing can be learned from it."""
    if not np.isfinite(waveform).all():
        raise BadSample("contains NaN or infinite samples")
    if not len(waveform) or np.ptp(waveform) < SILENCE:
        raise BadSample(f"is silent: all {len(waveform)} samples that are used are the same")


def normalize(waveform: Waveform) -> Waveform:
    """Zero mean and unit variance over all samples, as torch's layer_norm does (eps 1e-5)."""
    mean = waveform.mean(dtype=np.float64)
    variance = np.square(waveform - mean, dtype=np.float64).mean()
    return np.asarray((waveform - mean) / math.sqrt(variance + 1e-5), np.float32)


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


def load_any(path: str | Path) -> Waveform:
    """Read a file of any format, rate and channel count that libsndfile knows: (S,) float32 at 16
    kHz, the mean of the channels. Raises BadSample: unreadable, truncated, empty or not finite."""
    blocks = []
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate, stated = file.samplerate, file.frames
            cut_short = _cut_short(Path(path), file)
            while len(block := file.read(1 << 20, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1) if block.shape[1] > 1 else block[:, 0])
    except (soundfile.SoundFileError, OSError) as error:
        raise BadSample(f"unreadable: {str(error).replace(str(path), Path(path).name)}") from None
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if cut_short or len(waveform) < stated:
        raise BadSample(f"truncated: {len(waveform)} samples, fewer than its header states")
    if not len(waveform):
        raise BadSample("empty: no samples")
    if not np.isfinite(waveform).all():
        raise BadSample("holds NaN or infinite samples")
    return waveform if rate == SAMPLE_RATE else resample(waveform, rate)


def _cut_short(path: Path, file: soundfile.SoundFile) -> bool:
    """Whether an uncompressed file is shorter than its header states, which libsndfile hides."""
    if file.format == "NIST":
        with path.open("rb") as raw:
            stated = re.search(rb"sample_count -i (\d+)", raw.read(1024))
        return stated is not None and file.frames < int(stated[1])
    # Its log has lines like "data : 62880 (should be 31418)" for the other formats. Sizes of 2 GiB
    # and more come from programs that stream and do not know the size.
    line = re.compile(r"(?:data|ssnd|riff|size)\s*: (\d+) \(should be (\d+)\)", re.IGNORECASE)
    return any(
        int(there) < int(stated) < 0x7FFF0000 for stated, there in line.findall(file.extra_info)
    )


def resample(waveform: Waveform, rate: int) -> Waveform:
    """(S,) float32 at `rate` Hz to 16 kHz, with torchaudio's windowed sinc filter."""
    import torch  # both take seconds to import, and most corpora are 16 kHz already
    from torchaudio.functional import resample as sinc_resample

    if rate // math.gcd(rate, SAMPLE_RATE) > 2_000:
        # Without a common factor the filter takes gigabytes; 12 Hz off is under 0.2 % of any rate.
        rate = max(25, 25 * round(rate / 25))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits whatever the number of cores and processes
    try:
        out = sinc_resample(torch.from_numpy(waveform), rate, SAMPLE_RATE, lowpass_filter_width=64)
    finally:
        torch.set_num_threads(num_threads)
    return np.asarray(out)

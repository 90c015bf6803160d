"""From recordings to one shard: decode, convert, cut, write. Runs in the worker processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import webrtcvad
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from shards.recordings import Problem, Recording
from w2v2dist.data.audio import (
    SAMPLE_RATE,
    BadSample,
    Waveform,
    flac_num_samples,
    load_any,
    to_flac,
)
from w2v2dist.data.index_writer import ShardEntry, atomic, index_shard

MIN_PIECE = 2 * SAMPLE_RATE
MAX_PIECE = 35 * SAMPLE_RATE
# A transcript cannot be cut with its audio, and LibriSpeech's longest transcribed one has 35.2 s.
MAX_TRANSCRIBED = 40 * SAMPLE_RATE
MAX_PAUSE = SAMPLE_RATE
MIN_SAMPLES = 400  # 25 ms, the receptive field of one frame
FRAME = 480  # 30 ms, webrtcvad's longest

Span = tuple[int, int]

progress: Synchronized[float] | None = None  # seconds of audio done, over all workers


def set_progress(value: Synchronized[float]) -> None:
    """Worker initializer: where to count the seconds of audio that are done."""
    global progress
    progress = value


@dataclass(kw_only=True, slots=True)
class ShardReport:
    """What became of one shard's recordings; kept beside the shards until all are there."""

    plan: str
    entry: ShardEntry | None = None  # None: nothing usable was in it
    skipped: list[Problem] = field(default_factory=list)
    num_cut: int = 0
    num_texts_dropped: int = 0
    num_with_text: int = 0
    silence_s: float = 0.0  # left out where recordings were cut

    def write(self, path: Path) -> None:
        """Save as JSON, atomically."""
        with atomic(path) as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path, plan: str) -> ShardReport | None:
        """The saved report, if it is of `plan` and its tar is still there in full."""
        try:
            content = json.loads(path.read_bytes())
            entry = content.pop("entry")
            report = cls(**content, entry=entry and ShardEntry(**entry))
            report.skipped = [Problem(*problem) for problem in report.skipped]
            tar = path.parents[1] / report.entry.path if report.entry else None
            whole = tar is None or (report.entry and tar.stat().st_size == report.entry.bytes)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return report if whole and report.plan == plan else None

    def without_rows(self) -> ShardReport:
        """The report without its list of utterances, which `read` finds on the disk again."""
        e = self.entry
        return replace(self, entry=e and ShardEntry(path=e.path, bytes=e.bytes, sha256=e.sha256))


def build_shard(
    output: Path, name: str, recordings: list[Recording], plan: str, no_cut: bool = False
) -> ShardReport:
    """Write `output/name.tar` and the report of it. Raises OSError where the disk is full."""
    report = ShardReport(plan=plan)
    tar = output / f"{name}.tar"
    with atomic(tar) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for recording in recordings:
            try:
                for key, flac, label in _samples(recording, report, no_cut):
                    content = json.dumps(label, ensure_ascii=False).encode()
                    writer.write({"__key__": key, "flac": flac, "json": content})
            except BadSample as error:
                report.skipped.append(Problem(recording.source, str(error)))
    entry = index_shard(tar)
    if entry.keys:
        report.entry = entry
    else:
        tar.unlink()
    report.write(output / ".build" / f"{name}.json")
    return report


def _samples(
    recording: Recording, report: ShardReport, no_cut: bool
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(key, FLAC, label) of each piece of a recording. Raises BadSample before the first."""
    waveform = load_any(recording.path, recording.offset, recording.duration)
    num_samples = len(waveform)
    if num_samples < MIN_SAMPLES:
        raise BadSample(f"too short: {num_samples} samples at 16 kHz, the least is {MIN_SAMPLES}")
    has_labels = recording.text is not None or recording.phones is not None
    spans = [(0, num_samples)]
    whole = no_cut or num_samples <= (MAX_TRANSCRIBED if has_labels else MAX_PIECE)
    if not whole:
        spans = cut(waveform, _marked_speech(recording))
        if not spans:
            raise BadSample(f"no speech found in {num_samples / SAMPLE_RATE:.0f} s")
        report.num_cut += 1
        report.num_texts_dropped += has_labels
        report.silence_s += (num_samples - sum(b - a for a, b in spans)) / SAMPLE_RATE
    labels = {k: getattr(recording, k) for k in ("text", "speaker", "phones", "phone_spans")}
    for number, (start, end) in enumerate(spans):
        # "+" is in no recording's key, so a piece's key is nobody else's
        key = recording.key if whole else f"{recording.key}+{number:04d}"
        label = {"key": key, "num_samples": end - start}
        label |= {"seconds": round((end - start) / SAMPLE_RATE, 3), "source": recording.source}
        if recording.offset is not None:
            label["offset"] = recording.offset
        if not whole:
            label |= {"start": start, "speaker": recording.speaker}
        else:
            label |= labels
        label = {k: v for k, v in label.items() if v is not None}
        flac = _original(recording, num_samples) if whole else None
        yield key, flac or to_flac(waveform[start:end]), label
        report.num_with_text += "text" in label
    if progress is not None:
        with progress.get_lock():
            progress.value += num_samples / SAMPLE_RATE


def _original(recording: Recording, num_samples: int) -> bytes | None:
    """The file itself where it is the FLAC that we would write: 16 kHz, mono, 16 bit."""
    if not recording.path.lower().endswith(".flac") or recording.offset is not None:
        return None
    data = Path(recording.path).read_bytes()
    # STREAMINFO: 20 bits rate, 3 bits channels - 1, 5 bits bits - 1
    packed = int.from_bytes(data[18:22], "big") >> 4
    same = data[:4] == b"fLaC" and packed == (SAMPLE_RATE << 8 | 0 << 5 | 15)
    return data if same and flac_num_samples(data[:26]) == num_samples else None


def _marked_speech(recording: Recording) -> list[Span] | None:
    """Voice activity from a Libri-Light .json beside the audio, if it has any."""
    try:
        marked = json.loads(Path(recording.path).with_suffix(".json").read_bytes())[
            "voice_activity"
        ]
        return [(round(a * SAMPLE_RATE), round(b * SAMPLE_RATE)) for a, b in marked] or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
    vad = webrtcvad.Vad(2)
    num_frames = len(waveform) // FRAME
    pcm = (np.clip(waveform[: num_frames * FRAME], -1, 1) * 32767).astype("<i2").tobytes()
    size = 2 * FRAME
    flags = [vad.is_speech(pcm[i * size : (i + 1) * size], SAMPLE_RATE) for i in range(num_frames)]
    voiced = np.convolve(np.asarray(flags, float), np.ones(11), mode="same") > 5
    edges = np.flatnonzero(np.diff(np.concatenate([[0], voiced.astype(np.int8), [0]])))
    margin = 3
    return [
        (max(0, int(a) - margin) * FRAME, min(num_frames, int(b) + margin) * FRAME)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


def _quietest(waveform: NDArray[np.float32], start: int, end: int) -> int:
    """The middle of the quietest 0.1 s between two positions."""
    window = SAMPLE_RATE // 10
    num_windows = max(1, (end - start) // window)
    blocks = waveform[start : start + num_windows * window].reshape(num_windows, -1)
    return start + int(np.square(blocks).mean(axis=1).argmin()) * window + window // 2

"""From recordings to one shard: decode, convert, cut, write. Runs in the worker processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.writer import TarWriter

from shards.cut import MAX_PIECE, Span, cut, marked_speech, stitch, voice_activity
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

# A transcript cannot be cut with its audio, and LibriSpeech's longest transcribed one has 35.2 s.
MAX_TRANSCRIBED = 40 * SAMPLE_RATE
MIN_SAMPLES = 400  # 25 ms, the receptive field of one frame

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
    output: Path, name: str, recordings: list[Recording], plan: str, cutting: str = "vad"
) -> ShardReport:
    """Write `output/name.tar` and the report of it. Raises OSError where the disk is full."""
    report = ShardReport(plan=plan)
    tar = output / f"{name}.tar"
    with atomic(tar) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for recording in recordings:
            try:
                for key, flac, label in _samples(recording, report, cutting):
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
    recording: Recording, report: ShardReport, cutting: str
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(key, FLAC, label) of each piece of a recording. Raises BadSample before the first."""
    waveform = load_any(recording.path, recording.offset, recording.duration)
    num_samples = len(waveform)
    if num_samples < MIN_SAMPLES:
        raise BadSample(f"too short: {num_samples} samples at 16 kHz, the least is {MIN_SAMPLES}")
    has_labels = recording.text is not None or recording.phones is not None
    pieces = _pieces(recording, waveform, has_labels, cutting)
    whole = pieces is None
    if pieces is None:
        pieces = [[(0, num_samples)]]
    else:
        report.num_cut += 1
        report.num_texts_dropped += has_labels
        kept = sum(end - start for spans in pieces for start, end in spans)
        report.silence_s += (num_samples - kept) / SAMPLE_RATE
    labels = {k: getattr(recording, k) for k in ("text", "speaker", "phones", "phone_spans")}
    for number, spans in enumerate(pieces):
        # "+" is in no recording's key, so a piece's key is nobody else's
        key = recording.key if whole else f"{recording.key}+{number:04d}"
        length = sum(end - start for start, end in spans)
        label = {"key": key, "num_samples": length}
        label |= {"seconds": round(length / SAMPLE_RATE, 3), "source": recording.source}
        if recording.offset is not None:
            label["offset"] = recording.offset
        if whole:
            label |= labels
        else:
            label |= {"start": spans[0][0], "speaker": recording.speaker}
        if len(spans) > 1:
            label["spans"] = spans  # of the recording, in samples
        label = {k: v for k, v in label.items() if v is not None}
        flac = _original(recording, num_samples) if whole else None
        yield key, flac or to_flac(np.concatenate([waveform[a:b] for a, b in spans])), label
        report.num_with_text += "text" in label
    if progress is not None:
        with progress.get_lock():
            progress.value += num_samples / SAMPLE_RATE


def _pieces(
    recording: Recording, waveform: Waveform, has_labels: bool, cutting: str
) -> list[list[Span]] | None:
    """The spans that make each piece of a recording; None: it stays whole. Raises BadSample."""
    part = recording.offset is not None  # the times of metadata are those of the whole
    if cutting == "librilight":
        if part:
            raise BadSample("a segment of a recording: only whole ones are cut by metadata")
        pieces = stitch(voice_activity(recording.path, len(waveform)), len(waveform))
        enough = [p for p in pieces if sum(b - a for a, b in p) >= MIN_SAMPLES]
        if not enough:
            raise BadSample("no voice activity: its segments are too short")
        return enough
    if cutting == "none" or len(waveform) <= (MAX_TRANSCRIBED if has_labels else MAX_PIECE):
        return None
    spans = cut(waveform, None if part else marked_speech(recording.path))
    if not spans:
        raise BadSample(f"no speech found in {len(waveform) / SAMPLE_RATE:.0f} s")
    return [[span] for span in spans]


def _original(recording: Recording, num_samples: int) -> bytes | None:
    """The file itself where it is the FLAC that we would write: 16 kHz, mono, 16 bit."""
    if not recording.path.lower().endswith(".flac") or recording.offset is not None:
        return None
    data = Path(recording.path).read_bytes()
    # STREAMINFO: 20 bits rate, 3 bits channels - 1, 5 bits bits - 1
    packed = int.from_bytes(data[18:22], "big") >> 4
    same = data[:4] == b"fLaC" and packed == (SAMPLE_RATE << 8 | 0 << 5 | 15)
    return data if same and flac_num_samples(data[:26]) == num_samples else None

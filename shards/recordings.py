"""Audio files of an input, and what is left out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# What libsndfile reads, then what people have and it does not read: those are named as unreadable.
READABLE = "flac wav mp3 ogg oga opus aif aiff aifc au snd caf w64 rf64 sph nist"
UNREADABLE = "m4a mp4 aac wma amr webm"
AUDIO = {f".{suffix}" for suffix in f"{READABLE} {UNREADABLE}".split()}


@dataclass(frozen=True, slots=True)
class Recording:
    """One audio file, or a segment of it (`offset`, `duration` in seconds), and its labels;
    `source`: its path in the input, `key`: its name in a tar."""

    key: str
    path: str
    source: str
    num_bytes: int
    text: str | None = None
    speaker: str | None = None
    phones: str | None = None
    phone_spans: tuple[tuple[int, int], ...] | None = None  # of each phone, in samples of 16 kHz
    offset: float | None = None
    duration: float | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells one build's recordings from another's; the path may move. Not the times of
        phones, which folders of before have not."""
        segment = () if self.offset is None else (self.offset, self.duration)
        labels = (self.text, self.speaker, self.phones)
        return (self.key, self.source, self.num_bytes, *labels, *segment)


class Problem(NamedTuple):
    """Something that was left out, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Remarks:
    """What readers of inputs say besides their recordings."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, path: Path, root: Path, reason: str) -> None:
        """Note a file, or what a label of it says, as left out."""
        inside = root.is_dir() and path.is_relative_to(root)
        source = path.relative_to(root).as_posix() if inside else path.as_posix()
        self.problems.append(Problem(source, reason))


def walk(root: Path) -> Iterator[tuple[Path, str]]:
    """(folder, name) of every file that is not hidden, in order; follows links, no circles."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from ((Path(folder), name) for name in sorted(names) if not name.startswith("."))


def audio_files(root: Path, remarks: Remarks) -> list[Path]:
    """The audio files under a folder; those that cannot be looked at are left out."""
    found = [f / name for f, name in walk(root) if Path(name).suffix.lower() in AUDIO]
    return [path for path in found if num_bytes(path, root, remarks) is not None]


def num_bytes(path: Path, root: Path, remarks: Remarks) -> int | None:
    """The size of a file; None and a problem where it is none."""
    try:
        if path.is_file():
            return path.stat().st_size
        reason = "the file does not exist"
        if path.is_symlink():
            reason = f"the link leads nowhere: {os.readlink(path)}"
        elif path.exists():
            reason = "is no file"
    except OSError as error:
        reason = error.strerror or str(error)
    remarks.leave_out(path, root, f"cannot be read: {reason}")
    return None


def read_text(path: Path, root: Path, remarks: Remarks) -> str:
    """The content of a text file; "" and a problem where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        remarks.leave_out(path, root, "text is not UTF-8")
    except OSError as error:
        remarks.leave_out(path, root, f"cannot be read: {error.strerror or error}")
    return ""


def lines_of(text: str) -> list[str]:
    """Its lines, as files have them: str.splitlines also ends them at U+2028, U+0085 and others,
    which stand in texts."""
    return [line.removesuffix("\r") for line in text.split("\n")]

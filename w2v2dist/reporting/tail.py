"""What was appended to a file of JSON lines since the last look, while another host writes it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = 64  # bytes before the place that was read to: others there, and it is another file
BLOCK = 1 << 22  # bytes that are read at once

COUNTED = ("tokens", "utterances")  # what progress is counted in where it is not hours of audio
# What is counted with: what another version or a damaged line has there must not end a report
WHOLE = {"step", "world_size", "total"}
NUMBERS = WHOLE | set(
    "time seconds audio_hours tokens utterances pause_seconds data_wait_seconds "
    "slowest_rank_seconds median_rank_seconds".split()
)
LARGEST = 2**53  # above, floats are no longer exact


class ReplacedError(Exception):
    """A file is not the one that was read before: what was read of it counts no more."""


class Tail:
    """The lines of a file, each once; none where it is not there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset, self._inode, self._mark = 0, 0, b""

    def lines(self) -> Iterator[bytes]:
        """The complete lines since the last call. Raises ReplacedError once where the file was
        truncated, removed or replaced; the next call reads it from its beginning."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            if self._offset:
                self._start_over()
            return
        with file:
            stat = os.fstat(file.fileno())
            if self._offset:
                file.seek(self._offset - len(self._mark))
                same = stat.st_ino == self._inode and file.read(len(self._mark)) == self._mark
                if not same:
                    self._start_over()
            self._inode = stat.st_ino
            while block := file.readlines(BLOCK):
                if not block[-1].endswith(b"\n") and parse(block[-1]) is None:
                    block.pop()  # half-written: its rest comes
                    if not block:
                        return
                self._offset += sum(map(len, block))
                self._mark = block[-1][-MARK:]
                yield from block

    def _start_over(self) -> None:
        self._offset = 0
        raise ReplacedError(str(self._path))


def parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where it is damaged, half-written or blank. A key of NUMBERS that
    has no finite number is left out."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    for key in NUMBERS & value.keys():
        number = value[key]
        usable = isinstance(number, int | float) and abs(number) < LARGEST
        if not usable or (key in WHOLE and int(number) != number):
            del value[key]
    return value

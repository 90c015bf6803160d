"""Lines of text files, plain or compressed by gzip, of any size."""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from w2v2dist.config import ConfigError
from w2v2dist.runtime.logging import console

TEXTS = (".txt", ".text", ".txt.gz", ".text.gz")  # what is taken from a folder
GZIP = b"\x1f\x8b"
EVERY = 1000  # lines between two looks at the position
Told = Callable[[int], None]


def text_files(given: list[str]) -> list[str]:
    """The files that names of files and folders, or - (standard input), stand for, each once.
    Raises ConfigError."""
    out: dict[str, None] = {}
    for name in given:
        path = Path(name)
        if name != "-" and path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.name.lower().endswith(TEXTS))
            if not found:
                raise ConfigError(f"{name} holds no text ({' '.join(TEXTS)})")
            out |= dict.fromkeys(found)
        elif name == "-" or path.exists():
            out[name] = None
        else:
            raise ConfigError(f"{name!r} does not exist: give a text file, a folder of them, or -")
    return [*out]


def opened(path: str | Path) -> tuple[BinaryIO, BinaryIO]:
    """A file (- is standard input) to be read as it is written, and the same to be read as text:
    what gzip compressed is taken out, whatever the file is called."""
    raw = sys.stdin.buffer if str(path) == "-" else Path(path).open("rb")  # noqa: SIM115
    assert isinstance(raw, io.BufferedReader)
    if raw.peek(2)[:2] != GZIP:
        return raw, raw
    unpacked: BinaryIO = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
    return raw, io.BufferedReader(unpacked, 1 << 20)  # type: ignore[type-var]


def lines(
    path: str | Path, told: Told = lambda position: None, longest: int = -1
) -> Iterator[bytes]:
    """The lines of a file without their ends; of one with more than `longest` bytes the first of
    them and one. `told` hears the bytes read so far. Raises ConfigError where it is damaged."""
    raw, file = opened(path)
    size = -1 if longest < 0 else longest + 1
    try:
        number = 0
        while line := file.readline(size):
            if len(line) == size and line[-1:] != b"\n":
                while (rest := file.readline(1 << 20)) and rest[-1:] != b"\n":
                    pass
            number += 1
            if number % EVERY == 0 and raw.seekable():
                told(raw.tell())
            yield line.rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{named(path)} is damaged ({error}): fetch it again") from None
    finally:
        if str(path) != "-":
            file.close()
            raw.close()


def named(path: str | Path) -> str:
    """A file as messages call it."""
    return "standard input" if str(path) == "-" else str(path)


def decoded(line: bytes, path: str | Path, number: int) -> str:
    """A line as text. Raises ConfigError that names the file and the line."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02X}"
        raise ConfigError(
            f"{named(path)}, line {number}, is not UTF-8 text (byte {byte}): save it as UTF-8 "
            "(iconv -f ITS_ENCODING -t UTF-8)"
        ) from None


def progress(what: str, paths: list[str]) -> tuple[Progress, Callable[[str], Told]]:
    """A bar over the bytes of files, and for each of them, in order, what `lines` tells."""
    sizes = {path: 0 if path == "-" else Path(path).stat().st_size for path in paths}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=None if "-" in paths else sum(sizes.values()))

    def of(path: str) -> Told:
        before = sum(sizes[p] for p in paths[: paths.index(path)])
        return lambda position: bar.update(task, completed=before + position)

    return bar, of

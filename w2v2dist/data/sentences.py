"""Texts as ids in memory-mapped files: written once, in bounded memory, opened by every process.
A sentence is a line; a blank one has no ids and length 0, so that numbers of lines stay."""

import array
import bisect
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rich.progress
from numpy.typing import NDArray

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import DELIMITER
from w2v2dist.data.vocabulary import UNKNOWN, TextUnits, Vocabulary
from w2v2dist.runtime.logging import console

TEXT, SUMMARY = "text.txt", "summary.json"  # what `lm text` calls them in its folder
BLOCK = 1024  # sentences that stay together when an epoch is permuted
BUFFER = 1 << 20  # ids that wait to be written
LOOKED_AT = 10_000  # sentences that tell what a text is made of
Column = NDArray[Any]


class Sentences:
    """The sentences of a folder that `encode_texts` wrote, with what an order of samples asks of an
    index: `num_samples` (ids of each and its end; 0: a blank line) and `shard_first` (blocks)."""

    num_samples: Column

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where the folder is not whole."""
        self.folder = folder
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text("utf-8"))
            names = ("ids", "ends", "num_samples")
            columns = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in names]
            self._ids, self._ends, self.num_samples = columns
            if len(self._ends) != len(self) or int(self._ends[-1]) != len(self._ids):
                raise ValueError("its columns have different sizes")
            self.fingerprint = str(self.meta["fingerprint"])
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the encoded text in {folder} is damaged ({error}): remove the folder, and it is "
                "made again"
            ) from None
        self.shard_first = np.minimum(np.arange(-(-len(self) // BLOCK) + 1) * BLOCK, len(self))

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Sentences, (self.folder,)  # another process maps the files itself

    def __len__(self) -> int:
        return len(self.num_samples)

    def ids(self, i: int) -> Column:
        """The ids of sentence `i`, int64, without its end."""
        last = int(self._ends[i])
        first = last - max(0, int(self.num_samples[i]) - 1)
        return np.asarray(self._ids[first:last], np.int64)

    def key(self, i: int) -> str:
        """Its file and line."""
        firsts = [first for _, first in self.meta["files"]]
        name, first = self.meta["files"][bisect.bisect_right(firsts, i) - 1]
        return f"{name}:{i - first + 1}"


def text_files(named: str | None, key: str) -> list[Path]:
    """The files of a configuration key (separated by commas), of a folder its text.txt. Raises
    ConfigError where there are none."""
    paths = [Path(part.strip()) for part in (named or "").split(",") if part.strip()]
    paths = [path / TEXT if path.is_dir() else path for path in paths]
    if not paths:
        raise ConfigError(f"{key} is not set: pass {key}=FILE, a text with a sentence a line")
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                f"{key} names {path}, which does not exist: give a text with a sentence a line (or "
                "one that is packed, .gz), or a folder that `w2v2dist lm text` wrote"
            )
    return paths


def check_units(paths: Sequence[Path], units: TextUnits, key: str) -> None:
    """Raise ConfigError where a text is made of something else than `units` (data.units): by what
    `lm text` noted beside it, or as its first sentences look."""
    for path in paths:
        noted = _noted(path)
        lines = itertools.islice(read_lines(path, "looking at"), LOOKED_AT)
        parts = [part for line in lines for part in line.split()]
        short = sum(map(len, parts)) < 2 * len(parts)  # words of any language are longer
        spelled = short and DELIMITER in parts
        if units != "tokens" and noted == "tokens":
            how = "the tokens of an alphabet between blanks, as `lm text` noted"
        elif units == "tokens" and noted == "words":
            how = "words, as `lm text` noted"
        elif spelled and units != "tokens":
            how = f"single characters between blanks, {DELIMITER} between words"
        elif short and units == "characters":
            how = "words of less than two characters, as if there were a blank behind each"
        else:
            continue
        fit = "data.units=words, or characters" if units == "tokens" else "data.units=tokens"
        raise ConfigError(f"data.units is {units} but {key}, {path}, has {how}: set {fit}")


def _noted(path: Path) -> str | None:
    """What `lm text` says that its text is made of; None of other texts."""
    try:
        units = json.loads(path.with_name(SUMMARY).read_text("utf-8"))["units"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(units) if path.name == TEXT else None


def fingerprint_of(paths: Sequence[Path]) -> str:
    """Of the content of the files, whatever they are called."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(f"{path.stat().st_size} ".encode())
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def joined(*fingerprints: str) -> str:
    """One fingerprint of several."""
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:16]


def read_lines(path: Path, doing: str) -> Iterator[str]:
    """The lines of a text, with a bar that shows how far it is. Raises ValueError that names the
    line that is not UTF-8, or the file where it is damaged."""
    number = 0
    shown: dict[str, Any] = {"console": console, "transient": True}
    with rich.progress.open(path, "rb", description=f"{doing} {path.name}", **shown) as raw:
        try:
            blocks = io.BufferedReader(raw, 1 << 20)  # type: ignore[type-var]  # the bar moves once a block
            file = gzip.GzipFile(fileobj=blocks) if path.suffix == ".gz" else blocks
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(
                f"line {number} of {path} is not UTF-8 text: save it as UTF-8"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged behind line {number} ({error}): fetch it again"
            ) from None


def encode_texts(paths: Sequence[Path], vocabulary: Vocabulary, folder: Path, text: str) -> Path:
    """Write the ids of the sentences (`text`: the texts' fingerprint) to `folder`, at once; returns
    it. Raises ConfigError where most words are unknown or there is no sentence."""
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        files = _write_columns(paths, vocabulary, temporary)
        (temporary / "dict.txt").write_text(vocabulary.lines(), encoding="utf-8")
        known = {"units": vocabulary.units, "fingerprint": joined(text, vocabulary.fingerprint)}
        (temporary / "meta.json").write_text(json.dumps({**known, **files}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_columns(paths: Sequence[Path], vocabulary: Vocabulary, folder: Path) -> dict[str, Any]:
    """The columns of the sentences, and what meta.json says of them."""
    kind = "<u2" if len(vocabulary) <= 1 << 16 else "<u4"
    kinds = {"ids": kind, "ends": "<u8", "num_samples": "<u4"}
    ids, ends, sizes = (
        GrowingColumn((folder / f"{name}.npy").open("w+b"), of) for name, of in kinds.items()
    )
    files, num_unknown = [], 0
    for path in paths:
        files.append([path.name, len(sizes)])
        for line in read_lines(path, "encoding"):
            found = vocabulary.encode(line)
            num_unknown += found.count(UNKNOWN)
            ids.extend(found)
            ends.append(len(ids))
            sizes.append(len(found) + 1 if found else 0)
    for column in (ids, ends, sizes):
        column.close()
    said = ", ".join(map(str, paths))
    if not len(ids):
        raise ConfigError(f"{said} has no sentence: write one a line")
    if num_unknown * 2 > len(ids):
        raise ConfigError(
            f"{num_unknown:,} of the {len(ids):,} {vocabulary.units} of {said} are not in the "
            "vocabulary: is it another text's (upper or lower case, data.units)?"
        )
    return {"files": files, "num_words": len(ids), "num_unknown": num_unknown}


class GrowingColumn:
    """A .npy file of one dimension that is written without knowing its length."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file, self._kind = file, kind
        self._waiting = array.array("q")
        self._written = 0
        self._header()

    def __len__(self) -> int:
        return self._written + len(self._waiting)

    def append(self, value: int) -> None:
        """One value more."""
        self._waiting.append(value)
        if len(self._waiting) >= BUFFER:
            self._flush()

    def extend(self, values: Iterable[int]) -> None:
        """Values more."""
        self._waiting.extend(values)
        if len(self._waiting) >= BUFFER:
            self._flush()

    def finish(self) -> None:
        """The file is whole, and still open."""
        self._flush()
        self._file.seek(0)
        self._header()  # numpy leaves room in it for the length to grow

    def close(self) -> None:
        """The file is whole, durable and closed."""
        self.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _flush(self) -> None:
        self._file.write(np.array(self._waiting).astype(self._kind).tobytes())
        self._written += len(self._waiting)
        del self._waiting[:]

    def _header(self) -> None:
        content = {"descr": self._kind, "fortran_order": False, "shape": (self._written,)}
        np.lib.format.write_array_header_1_0(self._file, content)

"""Writes the index of a folder of shards (index.py reads it), one shard at a time in memory."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import flac_num_samples
from w2v2dist.data.index import FILES, REBUILD, VERSION, Column, fingerprint_of, open_keys
from w2v2dist.runtime.files import in_the_way


@dataclass(kw_only=True, slots=True)
class ShardEntry:
    """What the index holds of one tar; the lists have one item an utterance, in its order."""

    path: str
    bytes: int
    sha256: str
    keys: list[str] = field(default_factory=list)
    speakers: list[str | None] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    num_samples: list[int] = field(default_factory=list)
    label_offset: list[int] = field(default_factory=list)
    label_size: list[int] = field(default_factory=list)


def index_shard(path: Path) -> ShardEntry:
    """Read headers, labels and checksum of a tar. Raises ValueError where it is not whole."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    entry = ShardEntry(path=path.name, bytes=path.stat().st_size, sha256=digest.hexdigest())
    labels: dict[str, tuple[int, int, str | None]] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member)
                if data is None:
                    continue
                if extension == "flac":
                    entry.keys.append(key)
                    entry.offset.append(member.offset_data)
                    entry.size.append(member.size)
                    entry.num_samples.append(flac_num_samples(data.read(26)))
                elif extension == "json":
                    speaker = json.loads(data.read()).get("speaker")
                    labels[key] = (member.offset_data, member.size, speaker)
    except (tarfile.TarError, ValueError, AttributeError) as error:
        raise ValueError(f"shard {path} is damaged ({error}): delete it and {REBUILD}") from None
    for key in entry.keys:
        offset, size, speaker = labels.get(key, (0, 0, None))
        entry.label_offset.append(offset)
        entry.label_size.append(size)
        entry.speakers.append(speaker)
    return entry


class _Columns:
    """The files of an index while it is written: a column each, and the keys."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.files = {c: stack.enter_context(atomic(folder / f"index.{c}.npy")) for c in FILES}
        self.keys = stack.enter_context(atomic(folder / "index.keys.txt"))
        self.shards: list[dict[str, Any]] = []  # as index.json describes them
        self._numbers: dict[str | None, int] = {None: -1}  # of the speakers, as they come
        self._said_by: list[Column] = [np.zeros(0, np.int32)]
        self._key_bytes = 0
        for column, file in self.files.items():
            _write_header(file, column, 0)

    def append(self, shard: ShardEntry) -> None:
        """The utterances of the next shard."""
        encoded = [key.encode() for key in shard.keys]
        self.keys.write(b"".join(encoded))
        ends = self._key_bytes + np.cumsum([len(key) for key in encoded], dtype="<u8")
        self._key_bytes += sum(map(len, encoded))
        numbers = [self._numbers.setdefault(s, len(self._numbers) - 1) for s in shard.speakers]
        self._said_by.append(np.array(numbers, "<i4"))
        special = {"shard": [len(self.shards)] * len(encoded), "key_end": ends, "speaker": []}
        for column, file in self.files.items():
            values = special[column] if column in special else getattr(shard, column)
            file.write(np.asarray(values, FILES[column]).tobytes())
        described = {"path": shard.path, "num_utterances": len(encoded)}
        self.shards.append({**described, "bytes": shard.bytes, "sha256": shard.sha256})

    def finish(self) -> dict[str, Any]:
        """Complete the files; what index.json says of them."""
        speakers = sorted(s for s in self._numbers if s is not None)
        sorted_number = np.full(len(self._numbers), -1, "<i4")  # the last: unknown, -1
        sorted_number[[self._numbers[s] for s in speakers]] = np.arange(len(speakers))
        self.files["speaker"].write(sorted_number[np.concatenate(self._said_by)].tobytes())
        num_utterances = sum(shard["num_utterances"] for shard in self.shards)
        for column, file in self.files.items():
            _write_header(file, column, num_utterances)
            file.flush()
        self.keys.flush()
        columns = {c: np.load(file.name, mmap_mode="r") for c, file in self.files.items()}
        keys, names = open_keys(Path(self.keys.name)), [shard["path"] for shard in self.shards]
        return {
            "num_samples_total": int(columns["num_samples"].sum(dtype=np.int64)),
            "num_utterances": num_utterances,
            "shards": self.shards,
            "speakers": speakers,
            "fingerprint": fingerprint_of(columns, keys, names),
        }


def write_index(
    folder: Path, name: str, shards: Iterable[ShardEntry], summary: dict[str, Any]
) -> str:
    """Write the index of `shards`, tars in `folder`; returns its fingerprint. One shard at a time
    is in memory; `summary` is written last, so that `shards` may count in it."""
    with ExitStack() as stack:
        columns = _Columns(folder, stack)
        for shard in shards:
            columns.append(shard)
        content = {"version": VERSION, "name": name, **columns.finish(), "summary": summary}
    with atomic(folder / "index.json") as file:  # last: a folder with an index.json is complete
        file.write(json.dumps(content, indent=1).encode())
    return str(content["fingerprint"])


def _write_header(file: BinaryIO, column: str, count: int) -> None:
    """The header of a .npy file; numpy gives it the same size for any count."""
    file.seek(0)
    header = {"descr": FILES[column], "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def made(folder: Path, key: str) -> Path:
    """A folder that an option or a key names, which is made. Raises ConfigError where it cannot be,
    because there is a file."""
    check_place(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_place(folder: Path, key: str) -> None:
    """Raise ConfigError where a folder that an option or a key names cannot be made, because there
    is a file."""
    if why := in_the_way(folder, key):
        raise ConfigError(why)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that appears under its name whole and durable, or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the rename, too, must outlive a power cut
        os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)

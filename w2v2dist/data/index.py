"""The index of a folder of shards: which utterance lies where, without opening a tar. `index.json`
names the shards; the columns beside it, `index.COLUMN.npy`, are memory-mapped, so that millions of
utterances open at once and the processes of a node share the pages. Utterances are in shard order,
then in the order of the tar."""

import bisect
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
# speaker: position in index.json's "speakers", -1 unknown · label_size: 0 without a .json member
TYPES = "shard:u4 offset:u8 size:u4 num_samples:u4 label_offset:u8 label_size:u4 speaker:i4"
COLUMNS = {column: f"<{kind}" for column, kind in (pair.split(":") for pair in TYPES.split())}
FILES = COLUMNS | {"key_end": "<u8"}  # where each key ends in index.keys.txt
REBUILD = "run shards/build.py again with the same arguments (it makes only what is missing)"

Column = NDArray[Any]


def open_keys(path: Path) -> Column:
    """The bytes of a file of keys; an empty file cannot be mapped."""
    empty = np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else empty


def fingerprint_of(columns: dict[str, Column], keys: Column, shard_names: Sequence[str]) -> str:
    """What tells one index from another: its shards' names, columns and keys."""
    digest = hashlib.sha256("\n".join(shard_names).encode())
    for column in FILES:
        digest.update(np.ascontiguousarray(columns[column]).data)
    digest.update(keys.data)
    return digest.hexdigest()[:16]


class ShardIndex:
    """The utterances of one or several folders of shards; columns are arrays of `len(index)`.
    `shard_first` (num_shards + 1): shard k holds shard_first[k] … shard_first[k + 1] - 1."""

    shard: Column
    offset: Column
    size: Column
    num_samples: Column
    label_offset: Column
    label_size: Column
    speaker: Column

    def __init__(self, folder: Path, content: dict[str, Any], columns: dict[str, Column]) -> None:
        self.folders = str(folder)  # separated by commas, as for load_many
        self.name = str(content["name"])
        self.fingerprint = str(content["fingerprint"])
        self.speakers: list[str] = content["speakers"]
        self._paths = [str(folder / shard["path"]) for shard in content["shards"]]
        self.shard_bytes = [int(shard["bytes"]) for shard in content["shards"]]
        self.shard_sha256 = [str(shard["sha256"]) for shard in content["shards"]]
        counts = [shard["num_utterances"] for shard in content["shards"]]
        self.shard_first: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        vars(self).update((column, columns[column]) for column in COLUMNS)
        # (first utterance, key_end, bytes of the keys) of each folder
        self._keys = [(0, columns["key_end"], open_keys(folder / "index.keys.txt"))]

    @classmethod
    def load(cls, folder: str | Path) -> "ShardIndex":
        """Open the index of `folder`. Raises ValueError where it is missing or inconsistent."""
        folder = Path(folder)
        path = folder / "index.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise ValueError(f"its version is {content['version']}, not {VERSION}")
            columns = {c: np.load(folder / f"index.{c}.npy", mmap_mode="r") for c in FILES}
            index = cls(folder, content, columns)
            wrong = [c for c, array in columns.items() if len(array) != len(index)]
            num_bytes = int(columns["key_end"][-1]) if len(index) else 0
            if wrong or len(index._keys[0][2]) != num_bytes:
                raise ValueError(f"columns {', '.join(wrong) or 'keys'} have another size")
            return index
        except NotADirectoryError:
            raise ValueError(
                f"{folder} is a file but must be a folder of shards: build one of the recordings "
                "with python shards/build.py --input FOLDER --output SHARDS"
            ) from None
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} holds no shard index ({Path(error.filename).name} is missing): "
                f"build it with python shards/build.py --input AUDIO --output {folder}"
            ) from None
        except (EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the shard index {path} cannot be used ({error}): delete it and {REBUILD}"
            ) from None

    @classmethod
    def load_many(cls, folders: str | Path) -> "ShardIndex":
        """Open `folders` (separated by commas) as one index; columns of several are copied."""
        parts = [cls.load(folder.strip()) for folder in str(folders).split(",") if folder.strip()]
        if not parts:
            raise ValueError("no shard folder is named: give one that shards/build.py wrote")
        index = parts[0]
        if len(parts) == 1:
            return index
        index.folders = ",".join(part.folders for part in parts)
        index.name = "+".join(part.name for part in parts)
        joined = "".join(part.fingerprint for part in parts)
        index.fingerprint = hashlib.sha256(joined.encode()).hexdigest()[:16]
        speakers = sorted({s for part in parts for s in part.speakers})
        number = {s: i for i, s in enumerate(speakers)}
        first_shard = np.cumsum([0, *(len(part._paths) for part in parts)])
        first = np.cumsum([0, *(len(part) for part in parts)])
        columns = {c: np.concatenate([getattr(part, c) for part in parts]) for c in COLUMNS}
        for part, a, b, k in zip(parts, first[:-1], first[1:], first_shard[:-1], strict=True):
            columns["shard"][a:b] += np.uint32(k)
            translate = np.array([*(number[s] for s in part.speakers), -1], np.int32)  # -1 stays -1
            columns["speaker"][a:b] = translate[part.speaker]
        starts = list(zip(parts, first[:-1].tolist(), strict=True))
        index._keys = [(a, *part._keys[0][1:]) for part, a in starts]
        index.shard_first = np.concatenate([[0], *(part.shard_first[1:] + a for part, a in starts)])
        for part in parts[1:]:
            index._paths += part._paths
            index.shard_bytes += part.shard_bytes
            index.shard_sha256 += part.shard_sha256
        index.speakers = speakers
        vars(index).update(columns)
        return index

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # Another process maps the files itself; pickled columns would be copies.
        return ShardIndex.load_many, (self.folders,)

    @property
    def shard_paths(self) -> list[Path]:
        """The tars. Made anew at each use: garbage collection would copy them into each worker."""
        return [Path(path) for path in self._paths]

    def shard_path(self, k: int) -> Path:
        """The tar of shard `k`."""
        return Path(self._paths[k])

    def __len__(self) -> int:
        return int(self.shard_first[-1])

    def key(self, i: int) -> str:
        """The key of utterance `i`: the name of its members in the tar, without extension."""
        if not 0 <= i < len(self):
            raise IndexError(f"utterance {i} is not in an index of {len(self)}")
        part = bisect.bisect_right(self._keys, i, key=lambda part: part[0]) - 1
        first, ends, keys = self._keys[part]
        j = i - first
        return bytes(keys[int(ends[j - 1]) if j else 0 : int(ends[j])]).decode()

    def keys(self) -> Iterator[str]:
        """All keys, in order."""
        return (self.key(i) for i in range(len(self)))

    def check_shard_sizes(self) -> None:
        """Raise ValueError naming shards that are missing or differ in size, and the remedy."""
        with ThreadPoolExecutor(32) as pool:  # a network file system answers many at a time
            problems = [*filter(None, pool.map(self.shard_problem, range(len(self._paths))))]
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise ValueError("; ".join(problems[:5]) + more)

    def shard_problem(self, k: int) -> str | None:
        """What is wrong with the size of shard `k`, and the remedy; None where nothing is."""
        path, stated = self.shard_path(k), self.shard_bytes[k]
        try:
            actual = path.stat().st_size
        except FileNotFoundError:
            return f"shard {path} is missing: copy it again, or {REBUILD}"
        if actual == stated:
            return None
        what = "was cut short" if actual < stated else "is another file than the indexed one"
        return (
            f"shard {path} {what} ({actual} bytes, the index says {stated}): copy it again, or "
            f"delete it and {REBUILD}"
        )

    def index_problem(self) -> str | None:
        """What the fingerprint of one folder's index shows (reads all columns); None: nothing."""
        columns = {c: getattr(self, c) for c in COLUMNS} | {"key_end": self._keys[0][1]}
        names = [path.name for path in self.shard_paths]
        actual = fingerprint_of(columns, self._keys[0][2], names)
        if actual == self.fingerprint:
            return None
        return (
            f"the index in {self.folders} was changed (its columns have fingerprint {actual}, "
            f"index.json says {self.fingerprint}): delete index.json and {REBUILD}"
        )

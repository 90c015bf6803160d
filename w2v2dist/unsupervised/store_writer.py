"""Writes a store of features (feature_store.py reads it): in parts, each of which is whole and
durable or not there, so that any process may make any part, and a killed run goes on with those
that it lacks. The files are the same for any number of processes."""

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from w2v2dist.config import ConfigError, diff
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.runtime.logging import read_jsonl

VERSION = 1
Dtype = Literal["float16", "float32"]
Label = dict[str, str]  # what was said, as the shards have it: text, phones
PART = 64  # utterances of a part


class PartWriter:
    """The utterances of one part, in order."""

    def __init__(self, file: BinaryIO, dim: int, dtype: np.dtype[Any]) -> None:
        self._file, self._dim, self.dtype = file, dim, dtype
        self.lines: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []

    def add(
        self,
        key: str,
        frames: ArrayLike,
        targets: ArrayLike | None = None,
        label: Label | None = None,
    ) -> None:
        """The next utterance: frames (T, C), targets (S,) at the frames' rate, what was said.
        Raises ValueError where the frames are of another shape, none, or not finite as stored."""
        values = np.asarray(frames)
        if values.ndim != 2 or values.shape[1] != self._dim or not len(values):
            raise ValueError(
                f"the frames of {key} are {values.shape} but must be (frames, {self._dim}), one "
                "frame at least"
            )
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, self.dtype)
        if not np.isfinite(stored).all():
            raise ValueError(f"the frames of {key} hold NaN or infinity as {self.dtype}")
        line = {"key": key, "num_frames": len(stored), "crc": zlib.crc32(stored.data)}
        if targets is not None:
            line["targets"] = np.asarray(targets, "<i4").tolist()
        self.lines.append({**line, **({"label": label} if label else {})})
        self._file.write(stored.data)

    def skip(self, key: str, reason: str, **more: Any) -> None:
        """An utterance that is left out, and why."""
        self.skipped.append({"key": key, "reason": reason, **more})


class FeatureStoreWriter:
    """Makes the store `folder`; until it is whole, all lies beside it in .NAME.parts. Either `add`
    utterance after utterance, or `part(k)` for each of the parts 0 … num_parts - 1, in any order
    and by any process; then `finish` (one process). As a context it finishes at its end unless
    something was raised. Parts that a killed one left are used: `missing` says which are not there.
    Raises ConfigError where features of another kind (dim, dtype, meta) have the folder."""

    def __init__(
        self, folder: str | Path, dim: int, dtype: Dtype = "float16", meta: Any = None
    ) -> None:
        self.folder = Path(folder)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        about = {"version": VERSION, "dim": dim, "dtype": dtype, "meta": meta or {}}
        self.about: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back
        self._aside = self.folder.with_name(f".{self.folder.name}.parts")
        self._parts = self._aside / "parts"
        self._waiting: list[tuple[Any, ...]] = []  # of `add`
        self._next = 0  # part that `add` makes
        self.complete = (self.folder / "store.json").is_file()
        self._check()
        if not self.complete:
            made(self._parts, "--output")
            if not (self._aside / "about.json").exists():
                with atomic(self._aside / "about.json") as file:
                    file.write(json.dumps(self.about).encode())

    def _check(self) -> None:
        """Raise ConfigError where something else has the folder."""
        if (
            not self.complete
            and self.folder.exists()
            and any(made(self.folder, "--output").iterdir())
        ):
            raise ConfigError(
                f"{self.folder} is no folder of features but is not empty: choose another one"
            )
        for path in (self.folder / "store.json", self._aside / "about.json"):
            if not path.is_file():
                continue
            try:
                there = dict(json.loads(path.read_text(encoding="utf-8")))
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{path} is damaged ({error}): remove {path.parent} and give the same command "
                    "again"
                ) from None
            differ = {
                k: v for k, v in diff(there, self.about).items() if k.split(".")[0] in self.about
            }
            for name, (before, now) in differ.items():
                raise ConfigError(
                    f"{path.parent} has features of other settings ({name} is {before} there "
                    f"and {now} now): choose another folder, or remove it"
                )

    def __enter__(self) -> "FeatureStoreWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.finish()

    def add(
        self,
        key: str,
        frames: ArrayLike,
        targets: ArrayLike | None = None,
        label: Label | None = None,
    ) -> None:
        """The next utterance, as `PartWriter.add` takes it."""
        self._waiting.append((key, np.array(frames), targets, label))
        if len(self._waiting) == PART:
            self._settle()

    def _settle(self) -> None:
        with self.part(self._next) as part:
            for one in self._waiting:
                part.add(*one)
        self._next += 1
        self._waiting = []

    def missing(
        self, num_parts: int, again: Callable[[dict[str, Any]], bool] | None = None
    ) -> list[int]:
        """The parts that are not there yet, and those of whose skipped utterances one is to be
        tried `again`."""
        if self.complete:
            return []
        there = {path.name for path in self._parts.glob("*.json")}
        out = [k for k in range(num_parts) if f"{k:08d}.json" not in there]
        if again is not None and not (self._aside / "features.npy").exists():
            tried = {*range(num_parts)} - {*out}
            out += [k for k in tried if any(map(again, self._record(k)["skipped"]))]
        return sorted(out)

    @contextlib.contextmanager
    def part(self, number: int) -> Iterator[PartWriter]:
        """The utterances of part `number`: they are durable when the context ends, or not there."""
        with atomic(self._parts / f"{number:08d}.frames") as file:
            part = PartWriter(file, self.about["dim"], self._dtype)
            yield part
        with atomic(self._parts / f"{number:08d}.json") as file:
            record = {"utterances": part.lines, "skipped": part.skipped}
            file.write(json.dumps(record, ensure_ascii=False).encode())

    def summary(self, num_parts: int) -> tuple[int, list[dict[str, Any]]]:
        """How many utterances the parts hold, and those that were skipped."""
        if self.complete:
            skipped = read_jsonl(self.folder / "skipped.jsonl")
            content = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
            return int(content["num_utterances"]), skipped
        records = [self._record(k) for k in range(num_parts)]
        return (
            sum(len(record["utterances"]) for record in records),
            [one for record in records for one in record["skipped"]],
        )

    def _record(self, number: int) -> dict[str, Any]:
        path = self._parts / f"{number:08d}.json"
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def finish(self, num_parts: int | None = None) -> None:
        """Lay the parts end to end; `num_parts` where they were made by `part`. Raises ConfigError
        where a key is there twice or a part was damaged."""
        if self._waiting:
            self._settle()
        if self.complete:
            shutil.rmtree(self.folder / "parts", ignore_errors=True)
            return
        num_parts = self._next if num_parts is None else num_parts
        if missing := self.missing(num_parts):
            raise ConfigError(
                f"{len(missing)} of {num_parts} parts of {self.folder} are missing: run the same "
                "command again, it makes them"
            )
        lines, skipped, targets = self._records(num_parts)
        check_once(line["key"] for line in lines)
        self._join(lines, num_parts)
        with atomic(self._aside / "targets.npy") as file:
            np.save(file, targets)
        for name, rows in (("utterances", lines), ("skipped", skipped)):
            with atomic(self._aside / f"{name}.jsonl") as file:
                file.writelines(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows)
        self._publish(lines, targets)

    def _records(
        self, num_parts: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], NDArray[np.int32]]:
        """The lines and the skipped of all parts, and their targets end to end."""
        lines: list[dict[str, Any]] = []
        skipped: list[dict[str, Any]] = []
        targets = [np.zeros(0, "<i4")]
        for number in range(num_parts):
            record = self._record(number)
            skipped += record["skipped"]
            for line in record["utterances"]:
                line["part"] = number
                if (found := line.pop("targets", None)) is not None:
                    line["num_targets"] = len(found)
                    targets.append(np.array(found, "<i4"))
                lines.append(line)
        return lines, skipped, np.concatenate(targets)

    def _join(self, lines: list[dict[str, Any]], num_parts: int) -> None:
        """features.npy of the parts' frames. A part is removed when it is in there, so that all
        takes the disk once; a join that was killed goes on."""
        dim = int(self.about["dim"])
        sizes = np.zeros(num_parts, np.int64)
        for line in lines:
            sizes[line.pop("part")] += line["num_frames"]
        path = self._aside / "features.npy"
        shape = (int(sizes.sum()), dim)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        with path.open("r+b" if path.exists() else "w+b") as out:
            there = path.stat().st_size
            np.lib.format.write_array_header_1_0(out, header)
            for number, num_bytes in enumerate((sizes * dim * self._dtype.itemsize).tolist()):
                part = self._parts / f"{number:08d}.frames"
                in_there = not part.exists() and out.tell() + num_bytes <= there
                if in_there:
                    out.seek(num_bytes, os.SEEK_CUR)
                    continue
                if not part.exists() or part.stat().st_size != num_bytes:
                    (self._parts / f"{number:08d}.json").unlink()
                    raise ConfigError(
                        f"{part} was damaged: it must be {num_bytes} bytes; run the same command "
                        "again, it makes this part anew"
                    )
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 24)
                out.flush()
                os.fsync(out.fileno())
                part.unlink()
            out.truncate()

    def _publish(self, lines: list[dict[str, Any]], targets: NDArray[np.int32]) -> None:
        """The folder under its name."""
        content = {
            **self.about,
            "num_utterances": len(lines),
            "num_frames": sum(line["num_frames"] for line in lines),
            "fingerprint": fingerprint_of(self.about, lines, targets),
        }
        with atomic(self._aside / "store.json") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
        self._aside.rename(self.folder)  # an empty folder gives way
        shutil.rmtree(self.folder / "parts")
        (self.folder / "about.json").unlink()
        self.complete = True


def check_once(keys: Iterable[str], where: str = "") -> None:
    """Raise ConfigError where a key is there twice; `where` stands before what is said."""
    twice = [key for key, n in Counter(keys).items() if n > 1]
    if twice:
        raise ConfigError(
            f"{where}{len(twice)} keys are there twice ({twice[0]}): features are found by key; "
            "name each folder of shards once, and give each recording a key of its own "
            "(shards/build.py does so within one folder)"
        )


def fingerprint_of(
    content: dict[str, Any], lines: Iterable[dict[str, Any]], targets: NDArray[Any]
) -> str:
    """What tells one store from another: what is said of it, its lines (which have sums of the
    frames), its targets."""
    about = {name: content[name] for name in ("dim", "dtype", "meta")}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for line in lines:
        digest.update(json.dumps(line, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(targets, "<i4").data)
    return digest.hexdigest()[:16]

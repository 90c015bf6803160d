"""The logs of a run folder as columns of numbers, read a line at a time, and what resumptions made
of them: what both `status` and `report` are made of."""

import contextlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v2dist.reporting.tail import parse

Record = dict[str, Any]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
LARGEST_STEP = 2**53


def read_records(path: Path) -> Iterator[Record]:
    """The JSON objects of a file of JSON lines, without lines that are half-written or damaged;
    none where the file is missing."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        yield from (record for line in file if (record := parse(line)) is not None)


def read_events(path: Path) -> list[Record]:
    """The entries of events.jsonl that say what happened, in their order."""
    return [e for e in read_records(path) if isinstance(e.get("event"), str)]


@dataclass(frozen=True, slots=True)
class Table:
    """Records as columns (N,): NaN where a record lacks the key or has no number for it. A text is
    its place in `texts`."""

    columns: dict[str, Floats]
    texts: list[str]
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    def column(self, key: str) -> Floats:
        """The column of a key, of NaN where no record has it."""
        found = self.columns.get(key)
        return np.full(self.num_rows, np.nan) if found is None else found

    def rows(self, chosen: NDArray[Any]) -> "Table":
        """The table of some rows, by mask or by place."""
        columns = {key: column[chosen] for key, column in self.columns.items()}
        size = np.count_nonzero(chosen) if chosen.dtype == bool else len(chosen)
        return Table(columns, self.texts, int(size))


class _Rows:
    """Records with the same keys, flat: 8 bytes a value, where dictionaries would take 100."""

    def __init__(self, record: Record, texts: dict[str, int]) -> None:
        self.keys = tuple(record)
        self.text_at = [i for i, value in enumerate(record.values()) if isinstance(value, str)]
        self.values, self.lines, self._texts = array("d"), array("q"), texts

    def add(self, record: Record, line: int) -> None:
        values = list(record.values())
        for i in self.text_at:
            values[i] = self._texts.setdefault(str(values[i]), len(self._texts))
        size = len(self.values)
        try:
            self.values.extend(values)
        except (TypeError, OverflowError):  # null, or what no metric should be
            del self.values[size:]
            self.values.extend(number(value) for value in values)
        self.lines.append(line)


def number(value: Any) -> float:
    """A number as such; NaN of what is none."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def read_metrics(path: Path) -> tuple[Table, Table]:
    """The records of training in metrics.jsonl, and those of validation (their keys are SET/NAME),
    each in the order of the file. Records without a step are left out."""
    texts: dict[str, int] = {}
    parts: dict[tuple[str, ...], _Rows] = {}
    for line, record in enumerate(read_records(path)):
        if not 0 <= number(record.get("step")) < LARGEST_STEP:
            continue
        part = parts.get(keys := tuple(record))
        if part is None:
            part = parts[keys] = _Rows(record, texts)
        part.add(record, line)
    names = list(texts)
    validation = {keys for keys in parts if any("/" in key for key in keys)}
    training = [part for keys, part in parts.items() if keys not in validation]
    return _joined(training, names), _joined([parts[keys] for keys in validation], names)


def _joined(parts: Sequence[_Rows], texts: list[str]) -> Table:
    """One table of records with different keys, in the order of their lines."""
    lines = np.concatenate([np.zeros(0, np.int64), *(np.frombuffer(p.lines, "q") for p in parts)])
    place = np.empty(len(lines), np.int64)
    place[np.argsort(lines)] = np.arange(len(lines))
    columns: dict[str, Floats] = {}
    first = 0
    for part in parts:
        matrix = np.frombuffer(part.values).reshape(-1, len(part.keys))
        rows = place[first : first + len(matrix)]
        first += len(matrix)
        for i, key in enumerate(part.keys):
            column = columns.setdefault(key, np.full(len(lines), np.nan))
            column[rows] = matrix[:, i]
    return Table(columns, texts, len(lines))


def world_size(start: Record) -> int | None:
    """How many processes an attempt had, of the event that began it."""
    size = start.get("world_size", start.get("new_world_size"))
    return size if isinstance(size, int) else None


def spans(starts: Sequence[Record], last: float) -> list[tuple[Record, float, float]]:
    """Each start of an attempt, its time and the next one's; `last` is the time of the end."""
    timed = sorted((s for s in starts if not math.isnan(number(s.get("time")))), key=time_of)
    ends = [time_of(start) for start in timed[1:]] + [last] * bool(timed)
    return [(s, time_of(s), max(end, time_of(s))) for s, end in zip(timed, ends, strict=True)]


def time_of(entry: Record) -> float:
    """When it was logged; 0 where it does not say."""
    value = number(entry.get("time", 0))
    return 0.0 if math.isnan(value) else value


def step_of(entry: Record) -> int:
    """Its step; 0 where it has none."""
    value = number(entry.get("step", 0))
    return int(value) if 0 <= value < LARGEST_STEP else 0

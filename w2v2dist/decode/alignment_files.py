"""The folder of an alignment: alignments.jsonl, words.ctm and symbols.ctm (NIST), skipped.jsonl, a
summary, and a file for Praat of each utterance where it is asked for."""

import contextlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from w2v2dist.config import ConfigError
from w2v2dist.decode.segments import COLUMNS
from w2v2dist.training.bad_samples import most_frequent

NUM_WORST = 100
Record = dict[str, Any]


@contextlib.contextmanager
def own_part(folder: Path, rank: int) -> Iterator[TextIO]:
    """The file of what one process finds: a record for each of its utterances. It stays for `join`
    unless there is an error."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _part(folder, rank).open("w", encoding="utf-8") as file:
            yield file
    except BaseException:
        _part(folder, rank).unlink(missing_ok=True)
        raise


def _part(folder: Path, rank: int) -> Path:
    return folder / f".part-{rank:05d}.jsonl"


def join(
    folder: Path, num_parts: int, about: Record, *, textgrid: bool, table: Path | None
) -> Record:
    """Make the folder's files, each whole or not there, of what the processes wrote, in the order
    of keys, and remove that; returns the summary. Raises ConfigError where nothing was aligned:
    then there is skipped.jsonl alone."""
    try:
        return _join(folder, num_parts, about, textgrid=textgrid, table=table)
    finally:
        for part in folder.glob(".part-*.jsonl"):  # also of more processes that were killed
            part.unlink()


def _join(
    folder: Path, num_parts: int, about: Record, *, textgrid: bool, table: Path | None
) -> Record:
    summary = _Summary()
    with contextlib.ExitStack() as stack:
        names = ("alignments.jsonl", "words.ctm", "symbols.ctm")
        out = {name: stack.enter_context(_whole(folder / name)) for name in names}
        segments = None if table is None else stack.enter_context(_whole(table))
        if segments is not None and table is not None and table.suffix == ".tsv":
            segments.write("\t".join(COLUMNS) + "\n")
        for record in _in_turn(folder, num_parts):
            summary.add(record)
            if "reason" in record:
                continue
            rows = record.pop("segments", [])
            record.pop("left_out", None)
            out["alignments.jsonl"].write(_line(record))
            for what in ("words", "symbols"):
                out[f"{what}.ctm"].writelines(_ctm(record, what))
            if segments is not None and table is not None:
                segments.writelines(_row(row, table) for row in rows)
            if textgrid:
                _write_textgrid(folder / "textgrids" / f"{record['key']}.TextGrid", record)
        result = summary.result()
        with _whole(folder / "skipped.jsonl") as file:
            file.writelines(map(_line, summary.skipped))
        if not result["num_aligned"]:
            raise ConfigError(
                f"no utterance of {about['data']} could be aligned: {result['why_skipped']}"
            )
        with _whole(folder / "summary.json") as file:
            file.write(json.dumps({**about, **result}, ensure_ascii=False, indent=1))
    return result


def _in_turn(folder: Path, num_parts: int) -> Iterator[Record]:
    """The processes' records, one of each in turn, as their utterances were dealt out."""
    with contextlib.ExitStack() as stack:
        paths = [_part(folder, rank) for rank in range(num_parts)]
        files = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
        while lines := [line for file in files if (line := file.readline())]:
            yield from map(json.loads, lines)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A file that appears under its name when all is written, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


_Row = tuple[float, str, Record]  # what it is sorted by (the worse, the more), key, what is shown


@dataclass(slots=True)
class _Summary:
    """What is said of all utterances."""

    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0
    skipped: list[Record] = field(default_factory=list)
    unwritten: float = 0.0
    worst: list[_Row] = field(default_factory=list)  # heaps: the best first
    most_unwritten: list[_Row] = field(default_factory=list)
    num_segments: int = 0
    segment_seconds: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count an utterance."""
        if "reason" in record:
            self.skipped.append(record)
            return
        self.scores.append(record["score"])
        self.seconds += record["seconds"]
        self.unwritten += record["unwritten"]
        shown = {name: record[name] for name in ("score", "unwritten", "key", "text")}
        for heap, bad in (
            (self.worst, -record["score"]),
            (self.most_unwritten, record["unwritten"]),
        ):
            heapq.heappush(heap, (bad, record["key"], shown))
            if len(heap) > NUM_WORST:
                heapq.heappop(heap)
        rows = record.get("segments", [])
        self.num_segments += len(rows)
        self.segment_seconds += sum(row["duration"] for row in rows)
        self.left_out.update(record.get("left_out", {}))

    def result(self) -> Record:
        """The summary."""
        num = max(1, len(self.scores))
        return {
            "num_aligned": len(self.scores),
            "num_skipped": len(self.skipped),
            "why_skipped": most_frequent(self.skipped),
            "seconds": round(self.seconds, 3),
            "mean_score": round(sum(self.scores) / num, 4),
            "mean_unwritten": round(self.unwritten / num, 4),
            "worst": _shown(self.worst),
            "most_unwritten": _shown(self.most_unwritten),
            "segments": {
                "num": self.num_segments,
                "seconds": round(self.segment_seconds, 3),
                "left_out": dict(self.left_out.most_common()),
            },
        }


def _shown(rows: list[_Row]) -> list[Record]:
    return [row for _, _, row in sorted(rows, key=lambda row: (-row[0], row[1]))]


def _ctm(record: Record, what: str) -> Iterator[str]:
    """Lines of a CTM file: key, channel, start, duration, what is said, confidence."""
    for said in record[what]:
        times = f"{said['start']:.3f} {said['end'] - said['start']:.3f}"
        yield f"{record['key']} 1 {times} {said['text']} {said['score']:.4f}\n"


def _row(row: Record, table: Path) -> str:
    """A line of the table of segments. Raises ConfigError for what a line cannot hold."""
    if table.suffix == ".jsonl":
        return _line({name: value for name, value in row.items() if value is not None})
    cells = ["" if row.get(name) is None else str(row[name]) for name in COLUMNS]
    if any(c in cell for cell in cells for c in "\t\r\n"):
        raise ConfigError(
            f"a cell of {table} has a tab or a line's end ({cells[0]!r}): let the name of "
            "--segments end in .jsonl"
        )
    return "\t".join(cells) + "\n"


def _write_textgrid(path: Path, record: Record) -> None:
    """A file for Praat: a tier of words and one of symbols, with what is between them."""
    end = record["seconds"]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += ["xmin = 0", f"xmax = {end}", "tiers? <exists>", "size = 2", "item []:"]
    for number, tier in enumerate(("words", "symbols"), 1):
        intervals, at = [], 0.0
        for said in record[tier]:
            if said["start"] > at:
                intervals.append((at, said["start"], ""))
            intervals.append((said["start"], said["end"], said["text"].replace('"', '""')))
            at = said["end"]
        if at < end:
            intervals.append((at, end, ""))
        lines += [f"  item [{number}]:", '    class = "IntervalTier"', f'    name = "{tier}"']
        lines += ["    xmin = 0", f"    xmax = {end}", f"    intervals: size = {len(intervals)}"]
        for k, (low, high, text) in enumerate(intervals, 1):
            lines += [f"    intervals [{k}]:", f"      xmin = {low}", f"      xmax = {high}"]
            lines += [f'      text = "{text}"']
    with _whole(path) as file:
        file.write("\n".join(lines) + "\n")

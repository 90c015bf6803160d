"""Tables of recordings: our manifests, and those of Common Voice, NeMo, VoxPopuli and others."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.recordings import Problem, Recording, Remarks, audio_files, lines_of, num_bytes

# What columns are called, the first that there is
COLUMNS = {
    "path": "path audio_filepath audio_path wav_filename audio_file file_path filepath file audio "
    "filename file_name wav",
    "text": "text sentence transcript transcription normalized_text raw_text",
    "speaker": "speaker speaker_id client_id spk_id",
    "phones": "phones phonemes",
    "offset": "offset start start_time",
    "duration": "duration",
    "end": "end end_time",
    "id": "id id_ audio_id utt_id utterance_id",
}
# The tables of folders: the first pattern that finds one
TABLES = (
    "manifest.tsv", "manifest.jsonl", "manifest.csv", "manifest.json", "validated.tsv",
    "asr_*.tsv", "*manifest*.json", "*manifest*.jsonl", "metadata.csv", "train.tsv",
)  # fmt: skip
HOW = (
    "it must be a TSV or CSV file whose first line names the columns (path, text, speaker, phones, "
    "offset, duration; only path is required), or a .jsonl file of objects with these keys"
)


def find_table(root: Path) -> Path | None:
    """The table of a folder, None where it has none. Raises ValueError where it has several."""
    if root.is_file():
        return root
    for pattern in TABLES:
        found = sorted(path for path in root.glob(pattern) if path.is_file() and _is_table(path))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"--input {root} has several tables ({names}): name the file itself")
        if found:
            return found[0]
    return None


def _is_table(path: Path) -> bool:
    """Whether a file's first line names a column of audio, or is a JSON object with such a key."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline(100_000)
    except (OSError, UnicodeDecodeError):
        return path.name.startswith("manifest.")
    names = {*COLUMNS["path"].split(), *COLUMNS["id"].split()}
    if path.suffix in (".json", ".jsonl"):
        return first.lstrip().startswith(("{", "[")) and any(f'"{name}"' in first for name in names)
    return bool(names & {cell.strip().lower() for cell in first.split(_delimiter(first))})


def manifest(root: Path, remarks: Remarks) -> Iterator[Recording]:
    """The recordings of a table, or their segments where it has `offset` (and `duration` or `end`,
    in seconds). Paths are relative to the table's folder, or to clips/ beside it. Raises ValueError
    where the table cannot be read."""
    table = find_table(root)
    if table is None or not table.is_file():
        raise ValueError(f"--input {root} has no table such as manifest.tsv: name the file itself")
    rows = _rows(table)
    columns = _columns(table, rows, remarks)
    by_stem: dict[str, Path] = {}
    if "path" not in columns:  # VoxPopuli names utterances, not files
        by_stem = {path.stem: path for path in audio_files(table.parent, remarks)}
    named = Counter(str(row.get(columns.get("path", columns.get("id", "")))) for row in rows)
    seen: Counter[str] = Counter()
    for row in rows:
        cells = {what: row.get(name) for what, name in columns.items()}
        name = str(cells.get("path") or cells.get("id") or "")
        path = _place(table.parent, name) if "path" in columns else by_stem.get(name)
        seen[name] += 1
        if not name or path is None or not (path.exists() or path.is_symlink()):
            reason = "text without audio: the file does not exist"
            remarks.problems.append(Problem(Path(name or table.name).as_posix(), reason))
            continue
        size = num_bytes(path, table.parent, remarks)
        if size is None:
            continue
        try:
            offset, duration = _segment(cells)
        except ValueError as error:
            remarks.leave_out(path, table.parent, str(error))
            continue
        source = key = Path(name).as_posix()
        if "path" in columns:
            key = key.removesuffix(Path(name).suffix)
        labels = {k: str(cells[k]) for k in ("text", "speaker", "phones") if _filled(cells.get(k))}
        yield Recording(
            key=f"{key}_{seen[name]:04d}" if named[name] > 1 else key,
            path=str(path),
            source=source,
            num_bytes=size,
            text=labels.get("text"),
            speaker=labels.get("speaker"),
            phones=labels.get("phones"),
            offset=offset,
            duration=duration,
        )


def _place(folder: Path, name: str) -> Path:
    """Where a table's path leads: an absolute one stays."""
    clips = folder / "clips" / name  # Common Voice
    return clips if not (folder / name).exists() and clips.exists() else folder / name


def _filled(cell: Any) -> bool:
    return cell is not None and cell != ""


def _segment(cells: dict[str, Any]) -> tuple[float | None, float | None]:
    """(offset, duration) in seconds; None, None of a whole file, None of one to its end. Raises
    ValueError."""
    if not _filled(cells.get("offset")):
        return None, None
    numbers = {
        k: _number(k, cells[k]) for k in ("offset", "duration", "end") if _filled(cells.get(k))
    }
    offset, duration = numbers["offset"], numbers.get("duration")
    if duration is None and "end" in numbers:
        duration = numbers["end"] - offset
    if offset < 0 or (duration is not None and duration <= 0):
        raise ValueError(f"its segment begins at {offset:g} s and has {duration} s: mend the table")
    return offset, duration


def _number(name: str, cell: Any) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"its {name} is {cell!r} but must be a number of seconds")
    return value


def _rows(table: Path) -> list[dict[str, Any]]:
    """The rows of a table. Raises ValueError."""
    try:
        content = table.read_text(encoding="utf-8-sig")
        if table.suffix in (".json", ".jsonl"):
            if content.lstrip().startswith("["):
                rows = json.loads(content)
            else:
                rows = [json.loads(line) for line in lines_of(content) if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a row is no object")
            return [{str(k): v for k, v in row.items()} for row in rows]
        delimiter = _delimiter(content.partition("\n")[0])
        if delimiter == ",":
            return list(csv.DictReader(io.StringIO(content, newline=""), delimiter=","))
        lines = lines_of(content)
        return list(csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE))
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"manifest {table} cannot be read ({reason}): {HOW}") from None


def _delimiter(header: str) -> str:
    """What separates the cells of a header."""
    return max("\t,|", key=lambda c: (header.count(c), c == "\t"))


def _columns(table: Path, rows: list[dict[str, Any]], remarks: Remarks) -> dict[str, str]:
    """What is read -> the name of its column. Raises ValueError where no column names audio."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row if name is not None))
    known = {name.strip().lower(): name for name in reversed(names)}
    columns = {}
    for what, called in COLUMNS.items():
        if found := next((known[name] for name in called.split() if name in known), None):
            columns[what] = found
    if rows and not {"path", "id"} & columns.keys():
        shown = ", ".join(names[:10])
        raise ValueError(f"manifest {table} cannot be read (its columns are {shown}): {HOW}")
    unused = [name for name in names if name not in columns.values()]
    if unused:
        remarks.notes.append(f"{table.name}: columns that are not read: {', '.join(unused[:20])}")
    return columns

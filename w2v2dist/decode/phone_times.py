"""When phones are said: from TIMIT's shards, from `w2v2dist align`, from CTM or .phn files."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE

MOST_BEYOND = SAMPLE_RATE // 2  # samples that labels may go beyond the audio: TIMIT's do by some
FORMS = "a folder of w2v2dist align, a .ctm file, or a folder with .phn files"


class Timed(NamedTuple):
    """A phone from sample `start` to sample `end` (exclusive), at 16 kHz."""

    start: int
    end: int
    phone: str


# What is said of an utterance, by its key and its labels; None where nothing is known of it
Labeller = Callable[[str, Mapping[str, Any]], list[Timed] | None]


class BadTimesError(ValueError):
    """Labels that cannot be those of the audio."""


def labeller(source: str | None) -> Labeller:
    """Where phones are looked for: `source` is one of FORMS; None: in the shards, as TIMIT's have
    them. Raises ConfigError where it is none of these."""
    if source is None:
        return _of_shards
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"--phones {path} does not exist: give {FORMS}")
    if path.is_dir() and (path / "alignments.jsonl").is_file():
        path = path / "alignments.jsonl"
    if path.is_file():
        known = _of_alignments(path) if path.suffix == ".jsonl" else _of_ctm(path)
        return lambda key, labels: known.get(key)
    files = [p for p in path.rglob("*") if p.suffix.lower() == ".phn" and p.is_file()]
    if not files:
        raise ConfigError(f"--phones {path} holds no alignments.jsonl and no .phn: give {FORMS}")
    return _of_files(path, files)


def checked(phones: Iterable[Timed], num_samples: int) -> list[Timed]:
    """In order, cut to the audio. Raises BadTimesError where they are of other audio."""
    rows = sorted(phones)
    for row in rows:
        if row.end < row.start or row.start < 0:
            raise BadTimesError(f"its phone {row.phone} is from sample {row.start} to {row.end}")
    last = max((row.end for row in rows), default=0)
    if last > num_samples + MOST_BEYOND:
        raise BadTimesError(
            f"its phones end at {last / SAMPLE_RATE:.2f} s, its audio at "
            f"{num_samples / SAMPLE_RATE:.2f} s: they are of another recording, or of another rate"
        )
    return [Timed(a, min(b, num_samples), phone) for a, b, phone in rows if a < num_samples]


def num_overlapping(phones: Sequence[Timed]) -> int:
    """How many begin, in the order of `checked`, before an earlier one has ended."""
    ends = accumulate((row.end for row in phones), max)
    return sum(row.start < min(end, row.end) for end, row in zip(ends, phones[1:], strict=False))


def _of_shards(key: str, labels: Mapping[str, Any]) -> list[Timed] | None:
    spans, phones = labels.get("phone_spans"), str(labels.get("phones") or "").split()
    if spans is None:
        return None
    if not isinstance(spans, list) or len(spans) != len(phones):
        raise BadTimesError(f"it has {len(phones)} phones and other times of them")
    try:
        return [Timed(int(a), int(b), p) for (a, b), p in zip(spans, phones, strict=True)]
    except (TypeError, ValueError):
        raise BadTimesError("the times of its phones are no pairs of numbers") from None


def _samples(seconds: float) -> int:
    return round(float(seconds) * SAMPLE_RATE)


def _of_alignments(path: Path) -> dict[str, list[Timed]]:
    out = {}
    for number, line in _lines(path):
        try:
            record = json.loads(line)
            out[str(record["key"])] = [
                Timed(_samples(s["start"]), _samples(s["end"]), str(s["text"]))
                for s in record["symbols"]
            ]
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ConfigError(
                f"line {number} of {path} is no record of w2v2dist align ({error!r})"
            ) from None
    return out


def _of_ctm(path: Path) -> dict[str, list[Timed]]:
    """Lines `KEY CHANNEL START DURATION PHONE [CONFIDENCE]` in seconds."""
    out: defaultdict[str, list[Timed]] = defaultdict(list)
    for number, line in _lines(path):
        cells = line.split()
        if line.startswith(";;"):
            continue
        try:
            start, seconds = float(cells[2]), float(cells[3])
            out[cells[0]].append(Timed(_samples(start), _samples(start + seconds), cells[4]))
        except (IndexError, ValueError, OverflowError):
            raise ConfigError(
                f"line {number} of {path} is not KEY CHANNEL START SECONDS PHONE, as in a CTM "
                f"file: give {FORMS}"
            ) from None
    return dict(out)


def _of_files(root: Path, files: list[Path]) -> Labeller:
    """TIMIT's lines `START END PHONE` in samples of 16 kHz, by the place of the audio: all of the
    path that the shards know, else its last two parts (SPEAKER/NAME)."""
    by_place: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        parts = _place(file.relative_to(root).as_posix())
        for first in range(len(parts)):
            by_place["/".join(parts[first:])].append(file)

    def of(key: str, labels: Mapping[str, Any]) -> list[Timed] | None:
        parts = _place(str(labels.get("source", "")))
        for first in range(max(1, len(parts) - 1)):
            found = by_place.get("/".join(parts[first:]), [])
            if len(found) == 1:
                return _of_phn(found[0])
        return None

    return of


def _place(path: str) -> list[str]:
    """The parts of a path in lower case, without any suffix."""
    parts = [*PurePosixPath(path.lower()).parts]
    return [*parts[:-1], parts[-1].partition(".")[0]] if parts else [""]


def _of_phn(path: Path) -> list[Timed]:
    out = []
    for number, line in _lines(path):
        cells = line.split()
        try:
            out.append(Timed(int(cells[0]), int(cells[1]), cells[2]))
        except (IndexError, ValueError):
            raise BadTimesError(f"line {number} of {path.name} is not START END PHONE") from None
    return out


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """Lines that are not empty, with their numbers. Raises ConfigError where it is no text."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((n, line.strip()) for n, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text: give {FORMS}") from None

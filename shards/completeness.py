"""Is a download complete? What was found of a set beside what was published of it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.recordings import AUDIO, Problem, Recording, walk
from shards.splits import Place

SHOWN = 5


@dataclass(kw_only=True, slots=True)
class Found:
    """What the folders of a set hold; `hours` by the files' headers, once they were read."""

    places: list[Place]
    recordings: list[Recording]
    problems: list[Problem] = field(default_factory=list)
    hours: float | None = None
    left_out: Counter[str] = field(default_factory=Counter)  # of what is there, by reason

    @property
    def name(self) -> str:
        return self.places[0].part.name


def refuse_twice(found: Iterable[Found]) -> None:
    """Raise ValueError where an utterance stands in two places, or in two sets."""
    where: dict[str, tuple[str, str]] = {}
    for one in found:
        for r in one.recordings:
            unique = one.places[0].part.layout == "librispeech"  # its file names are
            key = Path(r.path).stem if unique else r.key
            name, path = where.setdefault(key, (one.name, r.path))
            if path != r.path:
                raise ValueError(
                    f"{key} stands in two places, {path} and {r.path}: give --input one copy of it"
                )
            if name != one.name:
                raise ValueError(
                    f"--split {name} and {one.name} both hold {key}: name the larger set alone"
                )


def lacks(found: Found) -> list[str]:
    """What is missing of a set, or too much, in words for a person; [] where it is complete."""
    place, part = found.places[0], found.places[0].part
    known, count = part.published, len(found.recordings)
    said = []
    if part.published.utterances is not None:
        off = count - part.published.utterances
        if abs(off) > known.utterances_within:
            said.append(f"found {count:,} of {part.published.utterances:,} utterances")
    speakers = {r.speaker for r in found.recordings}
    if known.speakers is not None and len(speakers) != known.speakers:
        said.append(f"found {len(speakers):,} of {known.speakers:,} speakers")
    if place.missing:
        said.append(f"no folder {_some(place.missing)}")
    said += _unheard(found)
    label = "phones" if part.layout == "timit" else "text"
    mute = [r.source for r in found.recordings if getattr(r, label) is None]
    if part.transcribed and mute:
        said.append(f"{len(mute):,} utterances have no {label}, such as {_some(mute)}")
    if known.hours is not None and found.hours is not None and not said:
        off_by = abs(found.hours - known.hours)
        if off_by > known.hours_within * known.hours:
            said.append(f"found {found.hours:.2f} of {known.hours:,g} hours")
    return said


def _unheard(found: Found) -> list[str]:
    """Which audio is missing, as far as lists beside it tell."""
    part = found.places[0].part
    if part.missing is not None:
        return part.missing(found.recordings)
    said = []
    texts = [p.source for p in found.problems if p.reason == "text without audio"]
    if not part.transcribed:
        texts += sorted(_without_audio(found.places))
    if texts:
        kind = "texts" if part.transcribed else "metadata"
        said.append(f"{len(texts):,} {kind} without audio, such as {_some(texts)}")
    if part.chapters is not None:
        said += _of_chapters(found)
    else:
        said += _of_lists(found)
    return said


def _of_chapters(found: Found) -> list[str]:
    """What is missing of the chapters that are known to the utterance."""
    part = found.places[0].part
    assert part.chapters is not None
    heard = {Path(r.path).stem for r in found.recordings}
    begun = {key.rpartition("-")[0] for key in heard}
    fold = part.name.startswith("10min")  # which chapters a fold has was not published
    wanted = {
        f"{chapter}-{number:04d}"
        for chapter, count in part.chapters.items()
        if not fold or chapter in begun
        for number in range(count)
    }
    said = []
    if lost := sorted(wanted - heard):
        said.append(f"missing by the published list: {len(lost)} utterances, {_some(lost)}")
    strange = sorted(heard - wanted)
    if strange and not part.name.startswith("10h"):
        said.append(f"not in the published list: {len(strange)} utterances, {_some(strange)}")
    return said


def _of_lists(found: Found) -> list[str]:
    """The chapters and speakers of LibriSpeech's own lists of which nothing is there."""
    heard = {tuple(Path(r.path).stem.split("-")[:2]) for r in found.recordings}
    folder = found.places[0].folders[0]
    for column, name in ((3, "CHAPTERS.TXT"), (2, "SPEAKERS.TXT")):
        rows = _rows(folder.parent / name) or _rows(folder / name)
        rows = [row for row in rows if len(row) > column and row[column] == found.name]
        if name == "CHAPTERS.TXT":  # chapter, reader
            lost = sorted({f"{r[1]}/{r[0]}" for r in rows if (r[1], r[0]) not in heard})
        else:
            speakers = {speaker for speaker, *_ in heard}
            lost = sorted({row[0] for row in rows} - speakers)
        if lost:
            kind = "chapters" if name == "CHAPTERS.TXT" else "speakers"
            return [f"missing by {name}: {len(lost)} of {len(rows)} {kind}, {_some(lost)}"]
    return []


def _rows(path: Path) -> list[list[str]]:
    """The rows of a table of LibriSpeech; [] where it is not there."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = (line for line in text.split("\n") if line.strip() and not line.startswith(";"))
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def _without_audio(places: Sequence[Place]) -> Iterable[str]:
    """Metadata of Libri-Light whose recording is not there."""
    for place in places:
        for folder in place.folders:
            names = [(at, name) for at, name in walk(folder)]
            there = {(at, Path(n).stem) for at, n in names if Path(n).suffix.lower() in AUDIO}
            for at, name in names:
                if name.endswith(".json") and (at, Path(name).stem) not in there:
                    yield (at / name).relative_to(place.root).as_posix()


def _some(names: Sequence[str]) -> str:
    more = ", …" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check(found: Sequence[Found], allow: bool) -> list[str]:
    """What is not complete of the sets, a line for each. Raises ValueError unless `allow`."""
    said = []
    for one in found:
        if lacking := lacks(one):
            where = os.path.commonpath([str(f) for p in one.places for f in p.folders])
            said.append(f"{one.name} in {where}: {'; '.join(lacking)}")
    if said and not allow:
        raise ValueError(
            "the download is not as it was published:\n  " + "\n  ".join(said) + "\n"
            "Unpack or download it again (tar names an archive that was cut off), or give "
            "--allow-incomplete to build what is there"
        )
    return said


def record(found: Sequence[Found], skipped: Set[str]) -> dict[str, Any]:
    """For index.json: what was checked, and what came of it; `skipped`: sources of recordings that
    turned out to be of no use."""
    sets = []
    for one in found:
        known, lacking = one.places[0].part.published, lacks(one)
        if lost := sorted(r.source for r in one.recordings if r.source in skipped):
            lacking.append(f"{len(lost):,} utterances cannot be used, such as {_some(lost)}")
        row = {"name": one.name, "utterances": len(one.recordings)}
        row |= {"published_utterances": known.utterances}
        row |= {"hours": one.hours and round(one.hours, 4), "published_hours": known.hours}
        row |= {"speakers": len({r.speaker for r in one.recordings})}
        row |= {"published_speakers": known.speakers, "lacks": lacking}
        row |= {"left_out": dict(one.left_out)} if one.left_out else {}
        sets.append(row)
    return {"names": [one.name for one in found], "sets": sets}


def in_words(split: dict[str, Any]) -> list[str]:
    """What `record` wrote, for a person: a line for each set."""
    said = []
    for row in split["sets"]:
        published = row["published_utterances"]
        beside = f" of {published:,} published" if published else ""
        state = "incomplete: " + "; ".join(row["lacks"]) if row["lacks"] else "complete"
        numbers = f"{row['utterances']:,} utterances{beside}"
        hours = f", {row['hours']:,.2f} h" if row["hours"] is not None else ""
        for reason, count in row.get("left_out", {}).items():
            numbers += f" (without {count:,} {reason})"
        said.append(f"{row['name']}: {numbers}{hours}, {row['speakers']:,} speakers, {state}")
    return said


def hours(
    seconds: Sequence[float], recordings: Sequence[Recording], found: Sequence[Found]
) -> dict[str, float]:
    """The hours of each set, from the seconds of all recordings."""
    of_path: defaultdict[str, float] = defaultdict(float)
    for recording, spent in zip(recordings, seconds, strict=True):
        of_path[recording.path] += spent
    return {one.name: sum(of_path[r.path] for r in one.recordings) / 3600 for one in found}

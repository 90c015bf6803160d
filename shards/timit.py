"""TIMIT's usual sets: 462 speakers to train on, 50 of dev, 24 of the core test, without SA: chosen
by the speakers, whatever folders these are in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from shards.recordings import Recording
from w2v2dist.data.timit import num_sentences, speakers, splits

__all__ = ["leave_out", "missing", "published", "splits"]

SHOWN = 8  # names in a list of what is missing
SENTENCE = re.compile(r"s([aix])\d+")


def published(name: str) -> dict[str, int]:
    """How many utterances and speakers a set has."""
    count = len(speakers(name))
    return {"utterances": num_sentences() * count, "speakers": count}


def leave_out(name: str, recording: Recording) -> str | None:
    """Why a recording is not of the set; None where it is."""
    speaker, kind = recording.speaker or "", SENTENCE.fullmatch(_sentence(recording))
    if speaker not in speakers(name):
        other = next((s for s in splits() if speaker in speakers(s)), None)
        return f"utterances of speakers of {other or 'none of the sets'}"
    if kind is None:
        return "utterances whose names are no sentences of TIMIT (si…, sx…)"
    return "SA sentences, which all speakers read" if kind[1] == "a" else None


def missing(name: str, recordings: Sequence[Recording]) -> list[str]:
    """Which speakers of the set, and sentences of them, are not there; what is too much."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for recording in recordings:
        found[recording.speaker or ""].add(_sentence(recording))
    wanted, lines = speakers(name), []
    if absent := [s for s in wanted if s not in found]:
        lines.append(f"without {_counted(len(absent), 'speaker')}, {_shown(absent)}")
    for word, other in (("fewer", -1), ("more", 1)):
        number = num_sentences()
        rows = [f"{s} ({len(x)})" for s, x in found.items() if (len(x) - number) * other > 0]
        if rows:
            said = _counted(len(rows), "speaker")
            lines.append(f"{said} with {word} than {number} sentences, {_shown(rows)}")
    return lines


def _sentence(recording: Recording) -> str:
    return recording.key.rpartition("-")[2]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

"""TIMIT's usual sets: 462 speakers to train on, 50 of dev, 24 of the core test, without SA."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from shards.recordings import Recording
from shards.splits import Split
from w2v2dist.data.timit import num_sentences, speakers, splits

SHOWN = 8  # names in a list of what is missing
SENTENCE = re.compile(r"s([aix])\d+")


def select(recordings: list[Recording], name: str) -> Split:
    """The recordings of a set, by their speakers, whatever folder they are in; sentences SA1 and
    SA2 are left out. Raises ValueError where none is of the set, or the set has another name."""
    if name not in splits():
        raise ValueError(
            f"--split is {name!r}, but TIMIT's sets are {', '.join(splits())} (the core test set)"
        )
    wanted = dict.fromkeys(speakers(name))
    kept: dict[tuple[str, str], Recording] = {}
    left_out: Counter[str] = Counter()
    for recording in recordings:
        speaker, sentence = recording.speaker or "", recording.key.rpartition("-")[2]
        kind = SENTENCE.fullmatch(sentence)
        if speaker not in wanted:
            left_out["of other speakers"] += 1
        elif kind is None:
            left_out["whose names are no sentences of TIMIT (si…, sx…)"] += 1
        elif kind[1] == "a":
            left_out["SA sentences, which all speakers read"] += 1
        elif (speaker, sentence) in kept:
            left_out["that are there twice"] += 1
        else:
            kept[speaker, sentence] = recording
    if not kept:
        raise ValueError(_none_found(recordings, name))
    return Split(
        corpus="TIMIT",
        name=name,
        recordings=[*kept.values()],
        expected={"speakers": len(wanted), "utterances": num_sentences() * len(wanted)},
        found={"speakers": len({s for s, _ in kept}), "utterances": len(kept)},
        left_out=dict(left_out),
        missing=_missing([*wanted], kept),
    )


def _none_found(recordings: list[Recording], name: str) -> str:
    here = {r.speaker for r in recordings}
    of = {s: len(here & {*speakers(s)}) for s in splits()}
    counts = ", ".join(f"{count} of {s}" for s, count in of.items() if count) or "none of any set"
    return (
        f"--split {name}: no sentence of TIMIT's {len(speakers(name))} speakers of {name} is there "
        f"beside SA1 and SA2; of the {len(here)} speakers that are, {counts}: give TIMIT's folder, "
        "or another --split"
    )


def _missing(wanted: list[str], kept: dict[tuple[str, str], Recording]) -> list[str]:
    """What a whole TIMIT has and this one lacks, a line each."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for speaker, sentence in kept:
        found[speaker].append(sentence)
    lines = []
    if absent := [s for s in wanted if s not in found]:
        lines.append(f"{len(absent)} of {len(wanted)} speakers are missing: {_shown(absent)}")
    few = [f"{s} ({len(found[s])})" for s in found if len(found[s]) < num_sentences()]
    if few:
        lines.append(
            f"{len(few)} speakers have fewer than {num_sentences()} sentences: {_shown(few)}"
        )
    many = [f"{s} ({len(found[s])})" for s in found if len(found[s]) > num_sentences()]
    if many:
        lines.append(
            f"{len(many)} speakers have more than {num_sentences()} sentences: {_shown(many)}"
        )
    silent = [f"{s}-{sentence}" for (s, sentence), r in kept.items() if not r.phones]
    if silent:
        lines.append(f"{len(silent)} utterances have no phones (.PHN): {_shown(silent)}")
    return lines


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

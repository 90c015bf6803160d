"""What a build has made: for index.json, and for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from shards import completeness
from shards.encode import ShardReport
from shards.recordings import Problem


def begin(
    reports: Mapping[int, ShardReport],
    num_bad: int,
    inputs: Sequence[Path],
    sets: Sequence[completeness.Found],
) -> dict[str, Any]:
    """The summary without what the index itself counts: utterances, hours, bytes, speakers."""
    summary: dict[str, Any] = {
        "hours": 0.0,
        "utterances": 0,
        "with_text": sum(r.num_with_text for r in reports.values()),
        "speakers": 0,
        "shards": sum(r.entry is not None for r in reports.values()),
        "bytes": 0,
        "recordings_cut": sum(r.num_cut for r in reports.values()),
        "texts_dropped_by_cutting": sum(r.num_texts_dropped for r in reports.values()),
        "hours_of_silence_left_out": round(sum(r.silence_s for r in reports.values()) / 3600, 4),
        "skipped": num_bad,
        # where a table of segments finds the recordings (w2v2dist align --segments)
        "inputs": [str((p if p.is_dir() else p.parent).resolve()) for p in inputs],
    }
    unusable = {problem.source for report in reports.values() for problem in report.skipped}
    return summary | ({"split": completeness.record(sets, unusable)} if sets else {})


def say(console: Console, summary: Mapping[str, Any], bad: Sequence[Problem]) -> None:
    """The summary on a console, and what was left out."""
    for key, value in summary.items():
        if key not in ("inputs", "split"):
            console.print(f"{key.replace('_', ' '):>26}  {value:,}", markup=False)
    for line in completeness.in_words(summary["split"]) if "split" in summary else ():
        console.print(line, markup=False)
    for reason, count in Counter(p.reason.partition(":")[0] for p in bad).most_common():
        example = next(p.source for p in bad if p.reason.startswith(reason))
        console.print(
            f"skipped {count} × {reason}, such as {example}", style="yellow", markup=False
        )
    if summary["texts_dropped_by_cutting"]:
        console.print("warning: cut recordings lost their text, whose alignment is unknown: build "
                      "with --no-cut, then w2v2dist align --segments", style="yellow")  # fmt: skip
    if not summary["with_text"]:
        console.print(
            "note: no text was found, and none is needed for pre-training. Texts are read from "
            "NAME.txt beside NAME.wav, *.trans.txt, or a table, which --input may name",
            style="yellow",
        )

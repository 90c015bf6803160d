"""The folder of an evaluation: what was read, how it was scored, and where it went wrong."""

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.scoring import Errors, Unit, confusions, error_rates, errors
from w2v2dist.decode.significance import Comparison, compare, interval
from w2v2dist.runtime.logging import read_jsonl

NUM_WORST, NUM_CONFUSIONS = 100, 500


@dataclass(frozen=True, slots=True)
class Line:
    """An utterance, what was said in it and what was read; `more` is what else is kept of it."""

    key: str
    reference: str
    hypothesis: str
    more: dict[str, Any] = field(default_factory=dict)


def score(lines: list[Line], alphabet: Alphabet) -> dict[str, Any]:
    """Error rates with their 95 % intervals, and the counts that they are made of, in words (or
    phones) and in letters."""
    out: dict[str, Any] = {}
    for unit, rates in _units(alphabet).items():
        found = _errors(lines, unit)
        counts = {
            f"{unit}_errors": sum(e.total for e in found),
            f"num_{unit}s": sum(e.num_units for e in found),
            f"{unit}_substitutions": sum(e.substitutions for e in found),
            f"{unit}_deletions": sum(e.deletions for e in found),
            f"{unit}_insertions": sum(e.insertions for e in found),
        }
        rated = error_rates(counts, rates)
        for name, value in rated.items():
            low, high = interval([e.total for e in found], [e.num_units for e in found])
            out |= {name: value, f"{name}_low": round(low, 6), f"{name}_high": round(high, 6)}
        out |= counts
    return out


def _units(alphabet: Alphabet) -> dict[Unit, tuple[str, ...]]:
    """The units that are counted, and the rates in each."""
    named = alphabet.error_rates
    words = tuple(name for name in named if name in ("wer", "per"))
    return {"word": words, "letter": tuple(name for name in named if name == "cer")}


def _errors(lines: list[Line], unit: Unit) -> list[Errors]:
    return errors([line.reference for line in lines], [line.hypothesis for line in lines], unit)


def write(
    folder: Path,
    lines: list[Line],
    skipped: list[dict[str, Any]],
    about: dict[str, Any],
    unit: Unit,
) -> None:
    """Write an evaluation, whole or not at all: evaluation.json (`about`), hypotheses.jsonl and
    .tsv, confusions.tsv, worst.tsv and skipped.jsonl. An older one in the folder is replaced."""
    found = _errors(lines, unit)
    rows = [
        {
            "key": line.key,
            "reference": line.reference,
            "hypothesis": line.hypothesis,
            "errors": e.total,
            f"num_{unit}s": e.num_units,
            **line.more,
        }
        for line, e in zip(lines, found, strict=True)
    ]
    worst = sorted(zip(found, lines, strict=True), key=lambda pair: -pair[0].total)
    texts = {
        "hypotheses.jsonl": _jsonl(rows),
        "hypotheses.tsv": _tsv(
            ("key", "reference", "hypothesis"), ((r.key, r.reference, r.hypothesis) for r in lines)
        ),
        "confusions.tsv": _confusions(lines, unit),
        "worst.tsv": _tsv(
            ("errors", f"{unit}s", "key", "reference", "hypothesis"),
            (
                (str(e.total), str(e.num_units), r.key, r.reference, r.hypothesis)
                for e, r in worst[:NUM_WORST]
                if e.total
            ),
        ),
        "skipped.jsonl": _jsonl(skipped),
        "evaluation.json": json.dumps(about, indent=1, ensure_ascii=False),
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        for name in texts:  # evaluation.json, the last, says that all are there
            (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _tsv(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (head, *rows))


def _confusions(lines: list[Line], unit: Unit) -> str:
    """The most frequent errors: count, kind, what was said and what was read."""
    pairs = [line.reference for line in lines], [line.hypothesis for line in lines]
    counts: Counter[tuple[str, str]] = confusions(*pairs, unit)
    rows = (
        (
            str(count),
            "insertion" if not said else "substitution" if read else "deletion",
            said,
            read,
        )
        for (said, read), count in counts.most_common(NUM_CONFUSIONS)
    )
    return _tsv(("count", "kind", "reference", "hypothesis"), rows)


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds an evaluation."""
    return (folder / "evaluation.json").is_file() and (folder / "hypotheses.jsonl").is_file()


def asked_of(folder: Path) -> Any:
    """The settings of an evaluation; None of one that does not say."""
    return json.loads((folder / "evaluation.json").read_bytes()).get("asked")


def own_folder(parent: Path, name: str, asked: Any) -> Path:
    """The folder of that name for an evaluation of these settings: with a number where one of
    something else has it already."""
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not is_evaluation(folder) or asked_of(folder) == asked:
            return folder
    raise AssertionError


def compare_folders(first: Path, second: Path) -> tuple[Comparison, int]:
    """Compare two evaluations, and how many utterances they share. Raises ConfigError where one is
    none, or they are of other utterances or references."""
    read = []
    for folder in (first, second):
        if not is_evaluation(folder):
            raise ConfigError(
                f"{folder} holds no evaluation (evaluation.json, hypotheses.jsonl): give a folder "
                "that `w2v2dist evaluate` wrote"
            )
        read.append({row["key"]: row for row in read_jsonl(folder / "hypotheses.jsonl")})
    a, b = read
    shared = [key for key in a if key in b]
    if not shared:
        raise ConfigError(
            f"{first} and {second} have no utterance in common: evaluate both on one set"
        )
    other = [key for key in shared if a[key]["reference"] != b[key]["reference"]]
    unit = "num_words" if "num_words" in a[shared[0]] else "num_letters"
    if other or unit not in b[shared[0]]:
        raise ConfigError(
            f"{first} and {second} have other references (such as {(other or shared)[0]}): their "
            "alphabets or normalisations differ, and their error rates cannot be compared"
        )
    lost, lost_b = ([int(of[key]["errors"]) for key in shared] for of in read)
    return compare(lost, lost_b, [int(a[key][unit]) for key in shared]), len(shared)

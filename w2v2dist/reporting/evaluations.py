"""The evaluations of a run as they were written: error rates, confusions, the worst utterances;
what of them is missing or damaged is left out. The paper's numbers that may stand beside them."""

import heapq
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from w2v2dist.config import flatten
from w2v2dist.decode.results import compare_folders
from w2v2dist.reporting import logs
from w2v2dist.reporting.paper_tables import paper_errors
from w2v2dist.reporting.runs import ERRORS, Run

MOST_EVALUATIONS = 24  # of a run
MOST_COMPARED = 24  # with the best of the same utterances, on a page
NUM_WORST, NUM_CONFUSIONS = 10, 20
NGRAM = re.compile(r"\.(arpa|bin|binary|klm|gz|trie)\b")
LABELS = {
    "10 min": "10m 10min",
    "1 h": "1h",
    "10 h": "10h",
    "100 h": "100h ls100",
    "960 h": "960h",
}


class Rate(NamedTuple):
    """An error rate with its 95 % interval; NaN where an older version wrote none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run."""

    run: Run
    folder: Path
    about: dict[str, Any]  # evaluation.json, flat

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @property
    def data(self) -> str:
        """The shards, as they were named."""
        return str(self.about.get("data", ""))

    @cached_property
    def rates(self) -> dict[str, Rate]:
        """wer, cer, per: those that there are."""
        found = {
            rate: [self.number(f"{rate}{end}") for end in ("", "_low", "_high")] for rate in ERRORS
        }
        return {rate: Rate(*values) for rate, values in found.items() if values[0] == values[0]}

    @property
    def unit(self) -> str:
        """What its utterances' errors are counted in: word (or phone), or letter."""
        return "word" if {"wer", "per"} & {*self.rates} else "letter"

    def number(self, key: str) -> float:
        """A number of evaluation.json, else NaN."""
        return logs.number(self.about.get(key))

    @cached_property
    def decoder(self) -> str:
        """How it was decoded, in words."""
        asked = {
            k: self.about.get(f"asked.{k}") for k in ("decoder", "lm", "lexicon", "rescore_lm")
        }
        parts = [str(asked["decoder"] or "unknown decoder")]
        if "beam.beam_size" in self.about:
            parts[0] += f" {self.about['beam.beam_size']}"
        parts += [
            f"{k} {str(v).split(' (')[0]}".removeprefix("lm ")
            for k, v in asked.items()
            if v and k != "decoder"
        ]
        if asked["lm"]:
            weights = {"LM weight": "lm_weight", "word score": "word_score"}
            found = {k: self.number(f"beam.{v}") for k, v in weights.items()}
            said = ", ".join(f"{k} {v:.3g}" for k, v in found.items() if v == v)
            tuned = ", tuned" if self.about.get("asked.tune") else ""
            parts.append(f"({said}{tuned})")
        return " ".join(parts)

    def confusions(self) -> list[tuple[int, str, str, str]]:
        """The most frequent: count, kind, what was said, what was read."""
        rows = _tsv(self.folder / "confusions.tsv", 4, NUM_CONFUSIONS)
        return [(int(n), kind, said, read) for n, kind, said, read in rows if n.isdecimal()]

    def worst(self) -> list[logs.Record]:
        """The utterances with the most errors, with key, reference, hypothesis and errors."""
        rows = (
            row
            for row in logs.read_records(self.folder / "hypotheses.jsonl")
            if logs.number(row.get("errors")) > 0
            and all(isinstance(row.get(k), str) for k in ("key", "reference", "hypothesis"))
        )
        return heapq.nlargest(NUM_WORST, rows, key=lambda row: float(row["errors"]))


def read_evaluations(run: Run) -> tuple[list[Evaluation], list[str]]:
    """The newest evaluations of a run, oldest first, and a line for each that cannot be read."""
    found, problems = [], []
    paths = [*run.folder.glob("evaluations/*/evaluation.json")]
    for path in sorted(paths, key=lambda p: p.stat().st_mtime)[-MOST_EVALUATIONS:]:
        try:
            about = json.loads(path.read_bytes())
            if not isinstance(about, dict):
                raise ValueError("it holds no mapping")
        except (ValueError, OSError, RecursionError) as error:
            problems.append(f"{path.parent.name}: evaluation.json cannot be read ({error})")
            continue
        evaluation = Evaluation(run, path.parent, flatten(about))
        if evaluation.rates:
            found.append(evaluation)
        else:
            problems.append(f"{path.parent.name}: evaluation.json has no error rate")
    return found, problems


def _tsv(path: Path, columns: int, most: int) -> list[list[str]]:
    """The first rows of a table, without its head; [] where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            next(file, None)
            lines = [line.rstrip("\n") for line, _ in zip(file, range(most), strict=False)]
    except OSError:
        return []
    return [cells for line in lines if len(cells := line.split("\t")) == columns]


def p_values(evaluations: list[Evaluation]) -> dict[Path, float | None]:
    """How likely the distance of each evaluation, by its folder, from the best one of the same data
    is by chance (paired bootstrap). None: it is that one. What cannot be compared is left out."""
    found: dict[Path, float | None] = {}
    for data in {e.data for e in evaluations}:
        same = [e for e in evaluations if e.data == data]
        best = min(same, key=_main_rate)
        others = [e for e in same if e is not best][: max(0, MOST_COMPARED - len(found))]
        for other in others:
            try:
                compared, _ = compare_folders(other.folder, best.folder)
            except (ValueError, KeyError, TypeError, OSError):  # other utterances, or an older file
                continue
            found[other.folder] = compared.p_value
            found[best.folder] = None
    return found


def _main_rate(evaluation: Evaluation) -> float:
    """The error rate in its unit."""
    return next(iter(evaluation.rates.values())).value


def paper_rates(evaluation: Evaluation) -> dict[str, float]:
    """The paper's error rates (%) for the same split and kind of decoder, by what they are of: only
    those that the run's name, data and size point to, where they do. {}: the paper has none."""
    rows = paper_errors(_split(evaluation), decoder_kind(evaluation))
    run = evaluation.run
    said = f"{run.name} {run.config.get('data.train', '')}".lower()
    words = re.split(r"[^0-9a-z]+", said)
    labels = [label for label, names in LABELS.items() if {*names.split()} & {*words}]
    size = {768: "BASE", 1024: "LARGE"}.get(int(run.number("model.embed_dim", 0)))
    for part in (labels[0] if len(labels) == 1 else None, size):
        narrowed = {k: v for k, v in rows.items() if part and f" {part} " in f" {k} "}
        rows = narrowed or rows
    return rows


def _split(evaluation: Evaluation) -> str:
    """The paper's set that an evaluation is of, by the name of its shards; "" where it is none."""
    name = re.sub(r"[^a-z0-9]+", "_", Path(evaluation.data).name.lower())
    if "per" in evaluation.rates and "timit" in evaluation.data.lower():
        return "timit_test" if "test" in name else "timit_dev"
    found = re.search(r"(dev|test)_(clean|other)", name)
    return found[0] if found and "wer" in evaluation.rates else ""


def decoder_kind(evaluation: Evaluation) -> str:
    """greedy, ngram or transformer; "" of a search that the paper has not."""
    lm = str(evaluation.about.get("asked.rescore_lm") or evaluation.about.get("asked.lm") or "")
    if not lm:
        return "greedy" if evaluation.about.get("asked.decoder") == "greedy" else ""
    return "ngram" if NGRAM.search(lm.lower()) else "transformer"

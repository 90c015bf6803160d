"""`w2v2dist unsupervised select`: which run of a sweep, chosen without labels, and whether the
sweep has converged."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError, flatten, read_yaml
from w2v2dist.runtime.logging import console, read_jsonl
from w2v2dist.unsupervised.selection import Candidate, code_choice, paper_choice

MANIFEST = "sweep.json"  # of submit.py --sweep: the cells by name
LEAST_USAGE = 0.8  # of the phones: what a run must reach to count as converged
MOST_DISAGREEMENT = 0.5  # phone errors of two runs against each other
SCORED_BY = ("data.valid", "data.text")  # what a score is of
NEEDED = ("loop.max_steps", "alarms.min_text_likeness")  # settings that a run is judged by
NUM_COMPARED = 3  # converged runs whose hypotheses are compared


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of a sweep: the validations whose checkpoints are there."""

    name: str
    folder: Path
    state: str  # finished, step N of M, not begun
    candidates: list[Candidate]
    min_likeness: float  # alarms.min_text_likeness of its settings
    data: dict[str, Any] = field(default_factory=dict)  # its settings of what it is scored by

    @property
    def best(self) -> Candidate | None:
        """By the score."""
        return code_choice(self.candidates)

    @property
    def problem(self) -> str:
        """Why it has not converged; "" where nothing speaks against it."""
        best = self.best
        if best is None:
            return "nothing but silence" if self.candidates else "no validated checkpoint"
        if best.phone_usage < LEAST_USAGE:
            return f"{best.phone_usage:.0%} of the phones in use"
        if best.text_likeness < self.min_likeness:
            return f"like text by {best.text_likeness:.0%}, under {self.min_likeness:.0%}"
        return ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist unsupervised select` takes."""
    add = parser.add_argument
    add("sweep", type=Path, metavar="SWEEP", help="folder of the runs, or one run")
    add("--json", action="store_true", help="for scripts: what was chosen, and the table")
    add("--no-agreement", action="store_true", help="do not read with the best runs and compare")


def run(args: argparse.Namespace) -> int:
    """Choose a run and its checkpoint without labels, by the reference implementation's score and
    by the paper's three steps, and say whether the sweep has converged. Phone error rates are
    shown where the validation set has labels; nothing is chosen by them.

    example:
      w2v2dist unsupervised select runs/unsupervised/sweep_v1
    """
    cells = read_cells(args.sweep)
    found = [c for cell in cells for c in cell.candidates]
    by_score, by_paper = code_choice(found), paper_choice(found)
    shared = None if args.no_agreement else disagreement(cells)
    lines = verdict(cells, shared)
    if args.json:
        print(json.dumps(_content(cells, by_score, by_paper, lines, shared), indent=1))
        return 0
    console.print(_table(cells, by_score, by_paper))
    for rule, chosen in (("by the score", by_score), ("by the paper's steps", by_paper)):
        console.print(f"{rule}: {_shown(cells, chosen)}", markup=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def read_cells(sweep: Path) -> list[Cell]:
    """The runs of a sweep's folder, or one run. Raises ConfigError where there is none."""
    if (sweep / "config.yaml").is_file():
        return [_read_cell(sweep)]
    names = sorted(path.parent.name for path in sweep.glob("*/config.yaml"))
    if (sweep / MANIFEST).is_file():
        listed = json.loads((sweep / MANIFEST).read_text(encoding="utf-8"))["cells"]
        names = [*listed, *(name for name in names if name not in listed)]
    cells = [_read_cell(sweep / name) for name in names]
    if not cells:
        raise ConfigError(
            f"{sweep} holds no runs: give the folder of `python launch/submit.py --sweep`, or of "
            "several trainings"
        )
    return cells


def _read_cell(folder: Path) -> Cell:
    if not (folder / "config.yaml").is_file():
        return Cell(folder.name, folder, "not begun", [], 0.0)
    config = flatten(read_yaml(folder / "config.yaml"))
    if config.get("task") != "unsupervised":
        raise ConfigError(
            f"{folder} is a run of task {config.get('task')}, but only trainings of task "
            "unsupervised are chosen without labels"
        )
    if missing := [key for key in NEEDED if config.get(key) is None]:
        raise ConfigError(
            f"{folder / 'config.yaml'} has no {' and no '.join(missing)}, which every training "
            "writes there: it is of another version of w2v2dist; choose with that one, or train "
            "anew"
        )
    records = read_jsonl(folder / "metrics.jsonl")
    steps = {checkpoint.step_of(path) for path in checkpoint.candidates(folder / "checkpoints")}
    validations = {r["step"]: r for r in records if "valid/nll" in r}  # the last of a step counts
    candidates = [_candidate(folder.name, r) for s, r in sorted(validations.items()) if s in steps]
    last = max([0, *(int(r["step"]) for r in records)])
    state = "finished" if last == config["loop.max_steps"] else f"step {last:,}"
    limit = float(config["alarms.min_text_likeness"])
    data = {key: config.get(key) for key in (*SCORED_BY, "data.batch_size")}
    return Cell(folder.name, folder, state, candidates, limit, data)


def _candidate(run: str, record: dict[str, Any]) -> Candidate:
    names = ("weighted_lm_ppl", "nll", "phone_usage", "log_prob", "text_likeness", "per")
    return Candidate(run, int(record["step"]), *(_number(record.get(f"valid/{n}")) for n in names))


def _number(value: Any) -> float:
    """JSON lines hold numbers that are not finite as null or text."""
    return math.nan if value is None else float(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def disagreement(cells: Sequence[Cell]) -> float | None:
    """Phone errors of the best converged runs against each other, the mean over pairs; None where
    fewer than two have converged, or their checkpoints or features cannot be opened."""
    good = sorted((c for c in cells if not c.problem), key=_score)[:NUM_COMPARED]
    if len(good) < 2 or {*SCORED_BY} & {*_different(good)}:
        return None
    from w2v2dist.decode.scoring import errors  # late: a table alone needs no models
    from w2v2dist.unsupervised.feature_store import FeatureStore
    from w2v2dist.unsupervised.selection import phones_of
    from w2v2dist.unsupervised.trained import open_trained

    read = []
    for cell in good:
        try:
            trained = open_trained(cell.folder)
            store = FeatureStore(str(trained.config.data.valid))
        except (ValueError, checkpoint.CheckpointError):
            return None
        silence = len(trained.symbols) - 1
        rows = (phones_of(row, silence) for row in trained.read(store))
        read.append([" ".join(trained.symbols[i] for i in row) for row in rows])
    rates = []
    for i, ours in enumerate(read):
        for theirs in read[i + 1 :]:
            counted = errors(ours, theirs, "word")
            total = sum(e.num_units for e in counted)
            rates.append(sum(e.total for e in counted) / max(1, total))
    return sum(rates) / len(rates)


def _score(cell: Cell) -> float:
    return math.inf if cell.best is None else cell.best.weighted_lm_ppl


def _different(cells: Sequence[Cell]) -> list[str]:
    """Which settings of what they are scored by are not the same in all."""
    return [key for key in cells[0].data if len({str(cell.data.get(key)) for cell in cells}) > 1]


def verdict(cells: Sequence[Cell], shared: float | None) -> list[str]:
    """Whether the sweep has converged, in words."""
    begun = [cell for cell in cells if cell.candidates]
    good = [cell for cell in begun if not cell.problem]
    lines = []
    if unfinished := [cell for cell in cells if cell.state != "finished"]:
        lines.append(
            f"{len(unfinished)} of {len(cells)} runs are not finished: the same "
            "`launch/submit.py --sweep` command goes on with them"
        )
    if not begun:
        return [*lines, "NOT CONVERGED: no run has a validated checkpoint yet"]
    unlike = _different(begun)
    if "data.batch_size" in unlike:
        lines.append(
            "The runs differ in data.batch_size, which the score depends on (phones in use are "
            "counted a batch): the paper's steps do not"
        )
    if not good:
        return [
            *lines,
            f"NOT CONVERGED: none of {len(begun)} runs reads what looks like this text: what is "
            "chosen is noise. Other seeds and weights, the rate of the outputs, the silence in "
            "the audio, or a text of another language (docs/unsupervised.md)",
        ]
    lines.append(f"{len(good)} of {len(begun)} runs look converged (no labels were looked at)")
    if of := [key for key in SCORED_BY if key in unlike]:
        lines.append(
            f"UNSURE: the runs differ in {' and '.join(of)}, and scores of other data cannot be "
            "compared: select among the runs of one sweep"
        )
    elif any(cell.best and math.isnan(cell.best.text_likeness) for cell in good):
        lines.append(
            "UNSURE: the phones of the text are as likely in a random order, or its order was not "
            "measured: nothing tells a reading from noise; give more text, of sentences"
        )
    elif shared is None:
        unread = "checkpoints or features cannot be opened here: the runs"
        why = "one run alone" if len(good) < 2 else unread
        lines.append(f"UNSURE: {why} cannot be compared with another; runs that fail may look so")
    elif shared > MOST_DISAGREEMENT:
        lines.append(
            f"DOUBTFUL: the best of them disagree in {shared:.0%} of the phones; runs that have "
            "found the language agree"
        )
    else:
        lines.append(f"CONVERGED: the best of them disagree in {shared:.0%} of the phones")
    lines.append("The score tells collapse from success, and not good from better")
    return lines


def _shown(cells: Sequence[Cell], chosen: Candidate | None) -> str:
    if chosen is None:
        return "none: no run has a checkpoint that reads anything"
    (folder,) = [cell.folder for cell in cells if cell.name == chosen.run]
    return str(folder / "checkpoints" / f"step_{chosen.step:08d}")


def _table(cells: Sequence[Cell], by_score: Candidate | None, by_paper: Candidate | None) -> Table:
    with_rates = any(cell.best and not math.isnan(cell.best.per) for cell in cells)
    table = Table(box=None, pad_edge=False)
    for name in (
        "run",
        "state",
        "step",
        "score",
        "nll",
        "like text",
        "phones",
        *["PER"] * with_rates,
        "",
    ):
        table.add_column(name, overflow="fold", justify="left" if name in ("run", "") else "right")
    for cell in sorted(cells, key=_score):
        best = cell.best
        marks = [
            m for m, c in (("score", by_score), ("paper", by_paper)) if c and c.run == cell.name
        ]
        said = " ".join([f"← {' and '.join(marks)}"] * bool(marks) + [cell.problem])
        values = [""] * 5 if best is None else [
            f"{best.step:,}", f"{best.weighted_lm_ppl:.1f}", f"{best.nll:.2f}",
            _percent(best.text_likeness), _percent(best.phone_usage),
        ]  # fmt: skip
        rate = "" if best is None else _percent(best.per, 1)
        table.add_row(cell.name, cell.state, *values, *[rate] * with_rates, said.strip())
    return table


def _percent(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}%}"


def _content(
    cells: Sequence[Cell],
    by_score: Candidate | None,
    by_paper: Candidate | None,
    lines: list[str],
    shared: float | None,
) -> dict[str, Any]:
    runs = [
        {
            "run": cell.name,
            "state": cell.state,
            "problem": cell.problem,
            "step": cell.best.step if cell.best else None,
            "weighted_lm_ppl": cell.best.weighted_lm_ppl if cell.best else None,
            "text_likeness": _known(cell.best.text_likeness) if cell.best else None,
            "phone_usage": cell.best.phone_usage if cell.best else None,
        }
        for cell in cells
    ]
    chosen = {"score": by_score, "paper": by_paper}
    return {
        "chosen": {rule: c and _shown(cells, c) for rule, c in chosen.items()},
        "converged": any(line.startswith("CONVERGED") for line in lines),
        "num_converged": sum(not cell.problem for cell in cells),
        "disagreement": shared,
        "verdict": lines,
        "runs": runs,
    }

"""`w2v2dist unsupervised select`: which run of a sweep, chosen without labels, and whether the
sweep has converged."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from w2v2dist.config import ConfigError
from w2v2dist.runtime.logging import console
from w2v2dist.unsupervised.agreement import (
    Agreement,
    apart,
    compare,
    converged,
    different,
    open_checkpoint,
    score,
    step_folder,
)
from w2v2dist.unsupervised.selection import Candidate, code_choice, paper_choice
from w2v2dist.unsupervised.sweep_runs import SCORED_BY, Cell, read_cells

MOST_DISAGREEMENT = 0.5  # phone errors of two runs against each other


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
    agreement = None if args.no_agreement else compare(cells)
    lines = verdict(cells, agreement)
    chosen = {"score": by_score, "paper": by_paper}
    unusable = {rule: c and _unusable(cells, c) for rule, c in chosen.items()}
    if args.json:
        shared = None if agreement is None else agreement.rate
        content = _content(cells, chosen, lines, shared)
        print(json.dumps({**content, "chosen_unusable": unusable}, indent=1))
        return 0
    console.print(_table(cells, by_score, by_paper))
    for rule, words in (("score", "by the score"), ("paper", "by the paper's steps")):
        console.print(f"{words}: {_shown(cells, chosen[rule])}", markup=False, soft_wrap=True)
        if reason := unusable[rule]:
            said = f"  WHICH CANNOT BE OPENED: {reason}"
            console.print(said, markup=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def verdict(cells: Sequence[Cell], agreement: Agreement | None) -> list[str]:
    """Whether the sweep has converged, in words. Without `agreement` nothing was compared."""
    begun = [cell for cell in cells if cell.candidates]
    good = converged(begun)
    lines = [
        f"{cell.name} is left out, it is damaged: {cell.damage}" for cell in cells if cell.damage
    ]
    if unfinished := [cell for cell in cells if cell.state not in ("finished", "damaged")]:
        lines.append(
            f"{len(unfinished)} of {len(cells)} runs are not finished: the same "
            "`launch/submit.py --sweep` command goes on with them"
        )
    if not begun:
        return [*lines, "NOT CONVERGED: no run has a validated checkpoint yet"]
    unlike = different(begun)
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
    lines += _compared(good, agreement, unlike)
    return [*lines, "The score tells collapse from success, and not good from better"]


def _compared(good: list[Cell], agreement: Agreement | None, unlike: list[str]) -> list[str]:
    """What runs that look converged say together."""
    agreement, was_asked = agreement or Agreement(), agreement is not None
    kept, same = apart(good)
    lines = [
        f"{name} is the same training as {other} (seed, data and all settings that matter): they "
        "count as one"
        for name, other in same.items()
    ]
    lines += [
        f"{name} has the same weights as {other}: they are one training, and count as one"
        for name, other in agreement.twins.items()
    ]
    lines += [f"{name} cannot be read: {reason}" for name, reason in agreement.unread.items()]
    shared = agreement.rate
    if of := [key for key in SCORED_BY if key in unlike]:
        said = (
            f"UNSURE: the runs differ in {' and '.join(of)}, and scores of other data cannot be "
            "compared: select among the runs of one sweep"
        )
    elif any(cell.best and math.isnan(cell.best.text_likeness) for cell in good):
        said = (
            "UNSURE: the phones of the text are as likely in a random order, or its order was not "
            "measured: nothing tells a reading from noise; give more text, of sentences"
        )
    elif shared is None:
        why = "checkpoints or features cannot be opened here: the runs"
        if len(kept) - len(agreement.twins) < 2:
            why = "one run alone" if len(good) < 2 else "one training alone"
        elif not was_asked:
            why = "they were not read (--no-agreement), and"
        said = f"UNSURE: {why} cannot be compared with another; runs that fail may look so"
    elif shared > MOST_DISAGREEMENT:
        said = (
            f"DOUBTFUL: the best of them disagree in {shared:.0%} of the phones; runs that have "
            "found the language agree"
        )
    else:
        said = f"CONVERGED: the best of them disagree in {shared:.0%} of the phones"
    return [*lines, said]


def _unusable(cells: Sequence[Cell], chosen: Candidate) -> str:
    """Why a checkpoint that is chosen cannot be opened; "" where it can."""
    try:
        open_checkpoint(_folder(cells, chosen))
    except ConfigError as error:
        return str(error)
    return ""


def _folder(cells: Sequence[Cell], chosen: Candidate) -> Path:
    (cell,) = [cell for cell in cells if cell.name == chosen.run]
    return step_folder(cell, chosen)


def _shown(cells: Sequence[Cell], chosen: Candidate | None) -> str:
    if chosen is None:
        return "none: no run has a checkpoint that reads anything"
    return str(_folder(cells, chosen))


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
    for cell in sorted(cells, key=score):
        best = cell.best
        marks = [
            m for m, c in (("score", by_score), ("paper", by_paper)) if c and c.run == cell.name
        ]
        said = " ".join(
            [f"← {' and '.join(marks)}"] * bool(marks)
            + [cell.problem if not cell.damage else "see below"]
        )
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
    chosen: Mapping[str, Candidate | None],
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
    return {
        "chosen": {rule: c and _shown(cells, c) for rule, c in chosen.items()},
        "converged": any(line.startswith("CONVERGED") for line in lines),
        "num_converged": sum(not cell.problem for cell in cells),
        "disagreement": shared,
        "verdict": lines,
        "runs": runs,
    }

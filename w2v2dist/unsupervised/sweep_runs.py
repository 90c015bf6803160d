"""The runs of a sweep as their folders tell them, with what is damaged in one."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError, flatten, from_dict, read_yaml
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training.run_folder import learned_by
from w2v2dist.training.schedules import LoopConfig
from w2v2dist.unsupervised.config import GanAlarmConfig, UnsupervisedConfig
from w2v2dist.unsupervised.selection import Candidate, code_choice

MANIFEST = "sweep.json"  # of submit.py --sweep: the cells by name
LEAST_USAGE = 0.8  # of the phones: what a run must reach to count as converged
SCORED_BY = ("data.valid", "data.text")  # what a score is of
NEEDED = ("loop.max_steps", "alarms.min_text_likeness")  # settings that a run is judged by
DATA = ("data.train", *SCORED_BY)
GIVE = "give the folder of `python launch/submit.py --sweep`, or of several trainings"


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of a sweep: the validations whose checkpoints are there."""

    name: str
    folder: Path
    state: str  # finished, step N of M, not begun, damaged
    candidates: list[Candidate]
    min_likeness: float  # alarms.min_text_likeness of its settings
    data: dict[str, Any] = field(default_factory=dict)  # its settings of what it is scored by
    training: str = ""  # tells what it learned from others; "": not known
    damage: str = ""  # why it cannot be judged: file, value, rule, remedy

    @property
    def best(self) -> Candidate | None:
        """By the score."""
        return code_choice(self.candidates)

    @property
    def problem(self) -> str:
        """Why it has not converged; "" where nothing speaks against it."""
        best = self.best
        if self.damage:
            return self.damage
        if best is None:
            return "nothing but silence" if self.candidates else "no validated checkpoint"
        if math.isnan(best.phone_usage):
            return "how many of the phones are in use is not known"
        if best.phone_usage < LEAST_USAGE:
            return f"{best.phone_usage:.0%} of the phones in use"
        if best.text_likeness < self.min_likeness:
            return f"like text by {best.text_likeness:.0%}, under {self.min_likeness:.0%}"
        return ""


def read_cells(sweep: Path) -> list[Cell]:
    """The runs of a sweep's folder, or one run; a damaged one beside others has `damage`. Raises
    ConfigError where there is none, or none that can be read."""
    if not sweep.is_dir():
        wrong = "is a file, no folder" if sweep.exists() else "does not exist"
        raise ConfigError(f"{sweep} {wrong}: {GIVE}")
    if (sweep / "config.yaml").is_file():
        return [_read_cell(sweep)]
    listed = _listed(sweep / MANIFEST)
    names = sorted(path.parent.name for path in sweep.glob("*/config.yaml"))
    names = [*listed, *(name for name in names if name not in listed)]
    if not names:
        raise ConfigError(f"{sweep} holds no runs: {GIVE}")
    cells, errors = [], list[ConfigError]()
    for name in names:
        try:
            cells.append(_read_cell(sweep / name))
        except ConfigError as error:
            errors.append(error)
            cells.append(Cell(name, sweep / name, "damaged", [], 0.0, damage=str(error)))
    if errors and all(cell.damage for cell in cells):
        raise errors[0]
    return cells


def _listed(path: Path) -> list[str]:
    """The cells that a sweep has, also those that have not begun. Raises ConfigError."""
    if not path.is_file():
        return []
    remedy = (
        'it must be {"cells": [...]} with the names of the sweep\'s run folders, each once; remove '
        "it, and the same `launch/submit.py --sweep` command writes it anew"
    )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise ConfigError(f"{path} is damaged ({error}): {remedy}") from None
    names = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(names, list):
        raise ConfigError(f"{path} is {_short(content)}, without a list of cells: {remedy}")
    for name in names:
        if not isinstance(name, str) or name in ("", "..") or name != Path(name).name:
            raise ConfigError(f"{path} has the cell {_short(name)}, no name of a folder: {remedy}")
        if names.count(name) > 1:
            raise ConfigError(f"{path} names the cell {_short(name)} twice: {remedy}")
    return names


def _read_cell(folder: Path) -> Cell:
    path = folder / "config.yaml"
    if not path.is_file():
        return Cell(folder.name, folder, "not begun", [], 0.0)
    config = flatten(read_yaml(path))
    if not config:
        raise ConfigError(
            f"{path} is empty, but every training writes its settings there: start the same "
            "training again, which writes them anew, or move the run elsewhere"
        )
    if config.get("task") != "unsupervised":
        raise ConfigError(
            f"{folder} is a run of task {config.get('task')}, but only trainings of task "
            "unsupervised are chosen without labels"
        )
    if missing := [key for key in NEEDED if config.get(key) is None]:
        raise ConfigError(
            f"{path} has no {' and no '.join(missing)}, which every training "
            "writes there: it is of another version of w2v2dist; choose with that one, or train "
            "anew"
        )
    last, limit = (config[key] for key in NEEDED)
    try:
        last = from_dict(LoopConfig, {"max_steps": last}, "loop.").max_steps
        alarms = from_dict(GanAlarmConfig, {"min_text_likeness": limit}, "alarms.")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; write the training's own value there") from None
    steps, candidates = _validations(folder)
    reached = max([0, *steps])
    state = "finished" if reached == last else f"step {reached:,}"
    prints = {key: _data_print(config.get(key)) for key in DATA}
    data = {key: prints.get(key, config.get(key)) for key in (*SCORED_BY, "data.batch_size")}
    training = learned_by(UnsupervisedConfig, {**config, **prints})
    limit = alarms.min_text_likeness
    return Cell(folder.name, folder, state, candidates, limit, data, training)


def _data_print(path: Any) -> str | None:
    """Tells features or a text from others: by what is in it, else by where it lies."""
    if path is None:
        return None
    for name in ("store.json", "meta.json"):
        try:
            content = json.loads((Path(str(path)) / name).read_text(encoding="utf-8"))
            return str(content["fingerprint"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return os.path.realpath(str(path))


def _validations(folder: Path) -> tuple[list[int], list[Candidate]]:
    """The steps of a run's records, and its validations (the last of a step counts) that have a
    checkpoint. Raises ConfigError."""
    records = [*_records(folder / "metrics.jsonl")]
    names = (path.name.removeprefix("step_") for path in (folder / "checkpoints").glob("step_*"))
    saved = {int(name) for name in names if name.isdecimal()}
    validations = {step: record for step, record in records if "valid/nll" in record}
    found = [_candidate(folder, s, r) for s, r in sorted(validations.items()) if s in saved]
    return [step for step, _ in records], found


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        records = read_jsonl(path)
    except ValueError as error:
        raise ConfigError(f"{path} is no text ({error}): take those bytes out") from None
    for record in records:
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ConfigError(
                f"{path} has the line {_short(record)}, but each must be a mapping whose step is a "
                "whole number: take it out"
            )
        yield step, record


def _candidate(folder: Path, step: int, record: dict[str, Any]) -> Candidate:
    values = []
    for name in ("weighted_lm_ppl", "nll", "phone_usage", "log_prob", "text_likeness", "per"):
        value = record.get(f"valid/{name}")
        try:  # lines hold numbers that are not finite as null or text
            values.append(math.nan if value is None else float(value))
        except (TypeError, ValueError):
            raise ConfigError(
                f"{folder / 'metrics.jsonl'} has valid/{name} {_short(value)} at step {step}, but "
                "it must be a number: take the line out"
            ) from None
    return Candidate(folder.name, step, *values)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"

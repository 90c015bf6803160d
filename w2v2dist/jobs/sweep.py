"""A sweep: one training at every point of a grid and with every seed, each a run folder of its own.
Here, one after another or some at a time, or as one Slurm array job."""

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v2dist.config import (
    ConfigError,
    flatten,
    from_dict,
    parse_overrides,
    read_yaml,
    to_dict,
    to_yaml,
)
from w2v2dist.data.index_writer import atomic
from w2v2dist.jobs.cluster import ClusterConfig, Executor, TrainJob, make_executor, of_one_process
from w2v2dist.recipes.queue import Queue
from w2v2dist.runtime.logging import append_jsonl, read_jsonl
from w2v2dist.tasks.train import read_config
from w2v2dist.training.run_folder import learned_by
from w2v2dist.unsupervised.sweep_runs import MANIFEST

MOST_CELLS = 1_000  # the usual MaxArraySize of a cluster
FORM = "a sweep has lists, as in `grid: {losses.penalty_weight: [1, 1.5]}` and `seeds: [0, 1]`"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """A file of a sweep."""

    config: str  # of the training, a path relative to the sweep's file
    run_dir: str = field(metadata={"path": True})  # the folder that gets a run folder a cell
    grid: dict[str, Any] = field(default_factory=dict)  # dotted key: list of its values
    seeds: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for key, values in {**self.grid, "seeds": list(self.seeds)}.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{key} is {values!r} but must be a list of one value or more")
            shown = [_text(value) for value in values]
            if len({*shown}) < len(shown):
                raise ValueError(f"{key} is {values!r} but must not name a value twice")
        for key in ("seed", "run_dir", "task", "base"):
            if key in self.grid:
                remedy = "seeds: [...]" if key == "seed" else "the sweep's own key, or another file"
                raise ValueError(f"grid has {key}, which it cannot vary: use {remedy}")


@dataclass(frozen=True, slots=True)
class Cell:
    """A point of the grid with a seed: `config` is the resolved configuration of its training."""

    name: str
    config: Any

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.run_dir)

    @property
    def is_finished(self) -> bool:
        """Whether it has said so, after its last step."""
        events = read_jsonl(self.folder / "events.jsonl")
        last = self.config.loop.max_steps
        return any(e.get("event") == "finished" and e.get("step") == last for e in events)

    def write_config(self) -> Path:
        """Its configuration as a file: editing the sweep while it waits must not change it."""
        path = self.folder / "logs" / "cell.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(to_yaml(self.config).encode())
        return path


@dataclass(frozen=True, slots=True)
class Sweep:
    """All cells of a sweep."""

    folder: Path
    cells: list[Cell]

    def write_manifest(self) -> None:
        """What `unsupervised select` compares: all cells, also those that have not begun."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic(self.folder / MANIFEST) as file:
            names = [cell.name for cell in self.cells]
            file.write(json.dumps({"cells": names}, indent=1).encode() + b"\n")


def read_sweep(path: str, overrides: Sequence[str]) -> Sweep:
    """The cells of a sweep's file; `overrides` win over its training's file (run_dir: over its
    own). Raises ConfigError, for a mistake in any cell."""
    written = read_yaml(path)
    try:
        sweep = from_dict(SweepConfig, written)
    except ConfigError as error:
        remedy = f"; {FORM}" if " but must be a " in str(error) else ""
        raise ConfigError(f"sweep {path}: {error}{remedy}") from None
    own = parse_overrides([text for text in overrides if text.startswith("run_dir=")], SweepConfig)
    folder = Path(own.get("run_dir", sweep.run_dir)).expanduser().absolute()
    others = [text for text in overrides if not text.startswith("run_dir=")]
    for key in ("seed", *sweep.grid):
        if any(text.startswith(f"{key}=") for text in others):
            raise ConfigError(f"{key} is of the sweep's grid: change it in {path}")
    training = str(Path(path).parent / sweep.config)
    short = _short_names([*sweep.grid])
    number = math.prod(map(len, [*sweep.grid.values(), sweep.seeds]))
    if number > MOST_CELLS:
        raise ConfigError(f"{path} has {number} cells, more than {MOST_CELLS}: split its grid")
    cells, points = [], []
    for *values, seed in itertools.product(*sweep.grid.values(), sweep.seeds):
        point = dict(zip(sweep.grid, values, strict=True))
        parts = [f"{short[key]}_{_text(value)}" for key, value in point.items()]
        words = [re.sub(r"(?:[^\w.+-]|_)+", "_", part).strip("_") for part in parts]
        name = "-".join([*words, f"seed_{seed}"])
        given = [f"{key}={_text(value)}" for key, value in point.items()]
        run_dir = f"run_dir={folder / name}"
        try:
            config = read_config(training, [*others, *given, f"seed={seed}", run_dir])
        except ConfigError as error:
            raise ConfigError(f"cell {name} of {path}: {error}") from None
        cells.append(Cell(name, config))
        points.append({key: _text(value) for key, value in {**point, "seed": seed}.items()})
    names = [cell.name for cell in cells]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{path}: two cells would be called {min(twice)}: change their values")
    _check_apart(path, cells, points)
    return Sweep(folder, cells)


def _check_apart(path: str, cells: list[Cell], points: list[dict[str, str]]) -> None:
    """Raise ConfigError where two cells are the same training: it would be made twice, and look
    like two that agree."""
    seen: dict[str, int] = {}
    for i, cell in enumerate(cells):
        settings = learned_by(type(cell.config), flatten(to_dict(cell.config)))
        if (first := seen.setdefault(settings, i)) != i:
            keys = [key for key in points[i] if points[i][key] != points[first][key]]
            values = (f"{key} ({points[first][key]} or {points[i][key]})" for key in keys)
            raise ConfigError(
                f"{path}: cells {cells[first].name} and {cell.name} are the same training: nothing "
                f"that is learned depends on {' and '.join(values)}; leave one of the values out"
            )


def _text(value: Any) -> str:
    """A value as it stands behind key= on the command line."""
    if isinstance(value, str):
        return value
    written: str = getattr(value, "text", "") or json.dumps(value)
    return written


def _short_names(keys: list[str]) -> dict[str, str]:
    """Keys by their last word, where that tells them apart."""
    last = {key: key.rpartition(".")[2] for key in keys}
    words = [*last.values()]
    return {key: word if words.count(word) == 1 else key for key, word in last.items()}


def fitting(sweep: Sweep, cluster: ClusterConfig) -> ClusterConfig:
    """The profile for a cell: a part of a node where all train in one process."""
    alone = all(cell.config.data.virtual_world_size == 1 for cell in sweep.cells)
    return of_one_process(cluster) if alone else cluster


def make_array(sweep: Sweep, cluster: ClusterConfig, nodes: str, minutes: int) -> Executor:
    """What submits the cells as an array; each task finds its run folder in a list of them."""
    executor = make_executor(cluster, sweep.folder, nodes, minutes)
    # Tasks of an array have one name, and would wait for each other. A run folder has its lock
    executor.parameters.pop("dependency", None)
    return executor


@dataclass(frozen=True, slots=True)
class Missing:
    """What a sweep still needs."""

    cells: list[Cell]
    num_finished: int
    num_queued: int


def missing(sweep: Sweep) -> Missing:
    """The cells that are neither finished nor in the queue. Raises ValueError where nobody knows
    what is in the queue: they could be submitted twice."""
    tasks = {
        f"{record['job']}_{number}": name
        for record in read_jsonl(_log(sweep))
        for number, name in enumerate(record["cells"])
    }
    queue = Queue.of(tasks)
    if not queue.answers:
        raise ValueError(
            f"cells of {sweep.folder} were submitted before, but squeue does not answer here, so "
            "nobody knows whether they still wait or run: try again, on a login node of the cluster"
        )
    queued = {name for task, name in tasks.items() if queue.state(task)}
    finished = {cell.name for cell in sweep.cells if cell.is_finished}
    left = [cell for cell in sweep.cells if cell.name not in finished | queued]
    return Missing(left, len(finished), len(queued))


def _log(sweep: Sweep) -> Path:
    """The arrays that were submitted, a line each."""
    return sweep.folder / "logs" / "submitted.jsonl"


def submit(sweep: Sweep, executor: Executor, at_once: int | None, todo: Missing) -> list[str]:
    """Submit the missing cells as one array; returns lines to print."""
    sweep.write_manifest()
    log = _log(sweep)
    log.parent.mkdir(parents=True, exist_ok=True)
    said = [
        f"{len(sweep.cells)} cells: {todo.num_finished} finished, {todo.num_queued} in the queue"
    ]
    if not todo.cells:
        return said
    folders = log.with_name(f"folders-{len(read_jsonl(log)):04d}.txt")
    with atomic(folders) as file:
        file.writelines(f"{cell.folder}\n".encode() for cell in todo.cells)
    executor.update_parameters(
        setup=[
            *executor.parameters["setup"],
            f'run=$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" "{folders}")',
        ],
        **({} if at_once is None else {"array_parallelism": at_once}),
    )
    jobs = [TrainJob(str(cell.write_config())) for cell in todo.cells]
    submitted = executor.submit_array(jobs)
    job = submitted[0].job_id.split("_")[0]
    append_jsonl(log, {"job": job, "cells": [cell.name for cell in todo.cells]})
    return [
        *said,
        f"submitted job {job}: an array of {len(todo.cells)} cells",
        f"runs {sweep.folder}",
        f"logs {submitted[0].paths.stdout.parent}/{job}_*",
    ]

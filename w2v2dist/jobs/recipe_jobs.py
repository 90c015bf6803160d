"""A recipe on a Slurm cluster: its missing stages as jobs that wait for each other."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v2dist.config import to_yaml
from w2v2dist.jobs.cluster import (
    ClusterConfig,
    TrainJob,
    environment_lines,
    make_executor,
    refusal,
    sbatch_options,
)
from w2v2dist.jobs.recipe_stage import finish
from w2v2dist.recipes.prepare import check_new, hand_out, prepare
from w2v2dist.recipes.recipe import Recipe, Stage, read_json
from w2v2dist.recipes.state import State, end_path, write_json
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.tasks.train import read_config
from w2v2dist.training.lock import locked

ARRAYS = ("evaluate", "tune")  # many of a kind: one job, a task for each
LARGEST_ARRAY = 500  # Slurm's MaxArraySize is 1001 where nobody has changed it


@dataclass(frozen=True)  # no slots: as TrainJob
class StageJob(TrainJob):
    """A training that says, when it has finished, that its stage is done."""

    task: str = ""

    def __call__(self) -> str:
        """Train; see TrainJob."""
        said = super().__call__()
        if os.environ["RANK"] == "0":
            task = read_json(Path(self.task))
            finish(task, Path(task["folder"]), 0.0)
        return said


class RefusedError(RuntimeError):
    """sbatch did not take a job; the message is its own."""


def submit_recipe(
    recipe: Recipe, cluster: ClusterConfig, minutes: int, command: str = ""
) -> list[str]:
    """Submit what is missing and not at work; returns a line for each job. Jobs wait for what they
    need with afterok, and leave the queue where it fails. Raises ConfigError, InUseError,
    RefusedError (what was submitted before stays, and is found by the next call)."""
    check_sizes(recipe, cluster)
    check_new(recipe)
    out: list[str] = []
    with locked(recipe.folder):
        found = prepare(recipe, command)
        jobs = {n: s.job for n, s in found.items() if s.name in ("queued", "running")}
        arrays: dict[str, int] = {}  # of this call, with the number of their tasks
        for batch in batches(recipe, found):
            waits = dependency(batch, jobs, arrays)
            if batch[0].is_training:
                made = [_submit_training(recipe, batch[0], cluster, minutes, waits)]
            else:
                made = _submit_commands(recipe, batch, cluster, minutes, waits)
            jobs |= dict(zip((stage.name for stage in batch), made, strict=True))
            arrays[made[0].split("_")[0]] = len(made)
            names = batch[0].name + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
            line = f"job {made[0].split('_')[0]}: {names} ({batch[0].kind})"
            line += f", {_short(waits)}" if waits else ""
            print(line, flush=True)
            out.append(line)
    return out


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def dependency(batch: Sequence[Stage], jobs: Mapping[str, str], arrays: Mapping[str, int]) -> str:
    """What sbatch --dependency says for stages: what all of them need must end well; of what only
    some of them need each looks itself, or it would take the others with it."""
    common = set(batch[0].needs).intersection(*(stage.needs for stage in batch[1:]))
    some = {need for stage in batch for need in stage.needs} - common
    parts = []
    for how, names in (("afterok", common), ("afterany", some)):
        if waited := waited_for([jobs[name] for name in names if name in jobs], arrays):
            parts.append(f"{how}:{':'.join(waited)}")
    return ",".join(parts)


def waited_for(jobs: Sequence[str], arrays: Mapping[str, int]) -> list[str]:
    """Jobs for afterok, an array whose tasks are all among them by its own number. One that was
    submitted before may have tasks that failed and are made anew by another job."""
    counts = Counter(job.split("_")[0] for job in set(jobs))
    whole = {base for base, count in counts.items() if arrays.get(base) == count}
    found = {base if (base := job.split("_")[0]) in whole else job for job in jobs}
    return sorted(found, key=lambda job: tuple(int(part) for part in job.split("_")))


def batches(recipe: Recipe, found: dict[str, State]) -> Iterator[list[Stage]]:
    """The stages to submit, in order: alone, or as the tasks of one array where they are many of a
    kind that wait for the same (but for shards, which are there long before)."""
    todo = {
        name: stage
        for name, stage in recipe.stages.items()
        if found[name].name not in ("done", "queued", "running")
    }
    together: dict[object, list[Stage]] = {}
    for name, stage in todo.items():
        waits = tuple(
            n
            for n in sorted(stage.needs)
            if found[n].name != "done" and recipe.stages[n].kind != "shards"
        )
        options = tuple(sorted(stage.resources.items()))
        key: object = (stage.kind, waits, options) if stage.kind in ARRAYS else name
        together.setdefault(key, []).append(stage)
    left = [
        stages[first : first + LARGEST_ARRAY]
        for stages in together.values()
        for first in range(0, len(stages), LARGEST_ARRAY)
    ]
    while left:
        # Those of an array stand where its first one does: what the others need may come later
        waiting = {stage.name for stages in left for stage in stages}
        ready = [b for b in left if not any(waiting.intersection(s.needs) for s in b)]
        if not ready:  # shards that need one of an array, of which another needs them
            left = [[stage] for stages in left for stage in stages]
            continue
        yield from ready
        left = [stages for stages in left if stages not in ready]


def placed(stage: Stage, cluster: ClusterConfig) -> tuple[Any, str, ClusterConfig]:
    """A training's configuration, its nodes, and the profile with at most a process for each slot
    (a small training does not fill a node)."""
    config = read_config(str(stage.config), [*stage.overrides, f"run_dir={stage.folder}"])
    most = int(stage.nodes.split("-")[-1])
    per_node = max(1, min(cluster.num_tasks_per_node, config.data.virtual_world_size // most))
    if per_node < cluster.num_tasks_per_node:
        gpus = min(cluster.gpus_per_node, per_node)
        cluster = dataclasses.replace(cluster, tasks_per_node=per_node, gpus_per_node=gpus)
    return config, stage.nodes, cluster


def check_sizes(recipe: Recipe, cluster: ClusterConfig) -> None:
    """Raise ConfigError for a training with more processes than slots."""
    for stage in recipe.stages.values():
        if stage.is_training:
            config, nodes, here = placed(stage, cluster)
            ranks = int(nodes.split("-")[-1]) * here.num_tasks_per_node
            VirtualRanks(config.data.virtual_world_size).check(ranks)


def _submit_training(
    recipe: Recipe, stage: Stage, cluster: ClusterConfig, minutes: int, waits: str
) -> str:
    """The job's number."""
    config, nodes, cluster = placed(stage, cluster)
    # singleton, as every training: a job of the same run that is not of the recipe goes first
    waits = f"singleton,{waits}".rstrip(",")
    extra = {**cluster.sbatch, "dependency": waits, "kill-on-invalid-dep": "yes"}
    cluster = dataclasses.replace(cluster, sbatch=extra)
    task = hand_out(recipe, stage)
    resolved = task.with_suffix(".yaml")
    resolved.write_text(to_yaml(config), encoding="utf-8")
    end_path(recipe.folder, stage.name).unlink(missing_ok=True)
    executor = make_executor(cluster, stage.folder, nodes, minutes)
    try:
        job = executor.submit(StageJob(str(resolved), (), str(task)))
    except Exception as error:  # submitit wraps what sbatch said in an exception of its own
        raise RefusedError(f"{stage.name}: {refusal(error)}") from None
    _record(task, str(job.job_id), job.paths.stdout)
    return str(job.job_id)


def _record(task: Path, job: str, log: Path) -> None:
    write_json(task, {**read_json(task), "job": job, "log": str(log)})


def _submit_commands(
    recipe: Recipe,
    stages: Sequence[Stage],
    cluster: ClusterConfig,
    minutes: int,
    waits: str,
) -> list[str]:
    """The numbers of the jobs: of one, or of an array's tasks."""
    tasks = [hand_out(recipe, stage) for stage in stages]
    for stage in stages:
        end_path(recipe.folder, stage.name).unlink(missing_ok=True)
    logs = (recipe.folder / "logs").absolute()
    logs.mkdir(parents=True, exist_ok=True)
    array = len(stages) > 1
    base = f"{stages[0].group}-%A_%a.log" if array else f"{stages[0].name}-%j.log"
    options: dict[str, Any] = {"time": minutes, **_shared(cluster), **stages[0].resources}
    options |= {"job-name": f"{recipe.name}-{stages[0].group if array else stages[0].name}"}
    options |= {"output": str(logs / base), "open-mode": "append", "requeue": True}
    options |= {"nodes": 1, "ntasks": 1}
    if array:
        options["array"] = f"0-{len(stages) - 1}"
    if waits:
        options |= {"dependency": waits, "kill-on-invalid-dep": "yes"}
    script = _script(options, cluster, [str(task.absolute()) for task in tasks])
    path = recipe.folder / "jobs" / f"{stages[0].name}.sh"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["sbatch", "--parsable", str(path)], capture_output=True, text=True, timeout=300
    )
    found = re.match(r"(\d+)", done.stdout.strip())
    if done.returncode or found is None:
        said = refusal(done.stderr or done.stdout)
        raise RefusedError(f"{stages[0].name}: {said} (the script: {path})")
    numbers = [f"{found[1]}_{i}" for i in range(len(stages))] if array else [found[1]]
    for task, number in zip(tasks, numbers, strict=True):
        name = base.replace("%A_%a", number).replace("%j", number)
        _record(task, number, logs / name)
    return numbers


def _shared(cluster: ClusterConfig) -> dict[str, Any]:
    """What the profile says of every job; nodes, GPUs and memory are of trainings."""
    named = {n: getattr(cluster, n) for n in ("account", "qos", "partition", "constraint")}
    given = {
        name: value
        for name, value in sbatch_options(cluster).items()
        if not name.startswith(("mem", "gpus", "gres", "exclusive", "time", "dependency", "cpus"))
    }
    return {k: v for k, v in {**named, **given}.items() if v}


def _script(options: dict[str, Any], cluster: ClusterConfig, tasks: Sequence[str]) -> str:
    """A batch script that runs the task of its number in the array."""
    lines = [
        f"#SBATCH --{k}" + ("" if v is True else f"={shlex.quote(str(v))}")
        for k, v in options.items()
    ]
    python = cluster.python or shlex.quote(sys.executable)
    run = ["srun", "--ntasks=1", "--cpu-bind=none", *map(shlex.quote, cluster.srun_args), python]
    return "\n".join(
        [
            *("#!/bin/bash", *lines),
            *environment_lines(cluster),
            f"tasks=({' '.join(map(shlex.quote, tasks))})",
            f"exec {' '.join(run)} -u -m w2v2dist.jobs.recipe_stage "
            '"${tasks[${SLURM_ARRAY_TASK_ID:-0}]}"',
            "",
        ]
    )

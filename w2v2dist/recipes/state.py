"""Where a recipe is: what its folder says of each stage, and what Slurm says of its jobs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from w2v2dist.config import diff, flatten
from w2v2dist.recipes.queue import Queue
from w2v2dist.recipes.recipe import Recipe, Stage, read_json
from w2v2dist.runtime.files import write_whole
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training.lock import last_holder

# done; changed: made with other settings; queued and running: a job, or a process here, has it;
# failed and stopped (by a signal): with a log; blocked: it needs one of these
Name = Literal[
    "done", "changed", "queued", "running", "failed", "stopped", "blocked", "waiting", "unknown"
]
ENDS = ("failed", "stopped")


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Where one stage is."""

    name: Name
    job: str = ""  # of Slurm, or "process N on HOST"
    log: Path | None = None
    why: str = ""  # failed: what ended it; blocked: what it waits for; queued: Slurm's reason
    seconds: float | None = None  # that it took
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def task_path(recipe_dir: Path, name: str) -> Path:
    """What a job of the stage is to do, as it was when it was handed out."""
    return recipe_dir / "jobs" / f"{name}.json"


def end_path(recipe_dir: Path, name: str) -> Path:
    """How the stage ended, where it did not end well."""
    return recipe_dir / "jobs" / f"{name}.end.json"


def part_of(folder: Path) -> Path:
    """Where a stage works before its results get their names; a training and shards, which go on
    where they were, have none."""
    return folder.with_name(f"{folder.name}.part")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write it whole or not at all."""
    write_whole(path, json.dumps(values, indent=1))  # ASCII: names of files may have no encoding


def states(recipe: Recipe, queue: Queue | None = None) -> dict[str, State]:
    """Where every stage is; asks Slurm once where a job was submitted."""
    out: dict[str, State] = {}
    tasks = {name: read_json(task_path(recipe.folder, name)) for name in recipe.stages}
    if queue is None:
        queue = Queue.of([str(t["job"]) for t in tasks.values() if t.get("job")])
    for name, stage in recipe.stages.items():
        state = _state(stage, tasks[name], read_json(end_path(recipe.folder, name)), queue)
        if state.name == "waiting":
            bad = [n for n in stage.needs if out[n].name in (*ENDS, "blocked")]
            if bad:
                state = State(name="blocked", why=f"needs {bad[0]}, which is {out[bad[0]].name}")
        out[name] = state
    return out


def _state(stage: Stage, task: dict[str, Any], end: dict[str, Any], queue: Queue) -> State:
    record, log = stage.record(), Path(task["log"]) if task.get("log") else None
    job = str(task.get("job") or "")
    if stage.done():
        return State(name="done", seconds=record.get("seconds"), job=str(record.get("job", "")))
    found = queue.state(job)
    holder = "" if job else _holder(stage, task)
    if found or holder:
        changes = changes_of(stage, task)
        name: Name = found or "running"
        why = queue.reason(job) if found == "queued" else ""
        return State(name=name, job=job or holder, log=log, why=why, changes=changes)
    changes = changes_of(stage, task or record)
    if changes and (stage.folder.exists() or part_of(stage.folder).exists()):
        return State(name="changed", changes=changes)
    if end.get("fingerprint") == stage.fingerprint and end.get("needs"):
        return State(name="waiting", why=str(end.get("why", "")))  # or blocked, by what it needs
    if end.get("fingerprint") == stage.fingerprint:
        ended: Name = "stopped" if end.get("signal") else "failed"
        return State(name=ended, job=job, log=log, why=str(end.get("why", "")))
    if task.get("fingerprint") != stage.fingerprint or not job:
        return State(name="waiting")
    if log is None or not log.exists():
        return State(name="waiting", why="its job was cancelled before it began")
    name, why = _without_a_word(stage, log)
    return State(name=name, job=job, log=log, why=why)


def _without_a_word(stage: Stage, log: Path) -> tuple[Name, str]:
    """Why a job ended that wrote neither done.json nor why it could not."""
    events = read_jsonl(stage.folder / "events.jsonl") if stage.is_training else []
    if events and events[-1]["event"] == "preempted":
        return "stopped", "cancelled; it has saved"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"\S*[Ee]rror\b", line)]
    return ("failed", errors[-1]) if errors else ("stopped", "its job ended without a word")


def _holder(stage: Stage, task: dict[str, Any]) -> str:
    """The process of this host that makes the stage, "" where there is none."""
    lock = Path(task.get("lock", stage.folder))
    held = last_holder(lock) if task else None
    if held and held.alive:
        return held.text.split(", Slurm")[0]
    return ""


def changes_of(stage: Stage, record: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs from what a stage was made with, by key, {} where nothing does; what it needs is
    one key."""
    if not record or record.get("fingerprint") in (None, stage.fingerprint):
        return {}
    old, new = record.get("what"), stage.what
    if isinstance(old, dict) and isinstance(new, dict):
        found = diff(flatten(old), flatten(new))
    else:
        found = {} if old == new else {"command": (_said(old), _said(new))}
    return found or {"what it needs": ("as it was", "changed")}


def _said(commands: Any) -> str:
    if isinstance(commands, dict):
        return f"a training ({commands.get('task')})"
    try:
        return " && ".join(" ".join(w for part in command for w in part) for command in commands)
    except TypeError:
        return str(commands)

"""A recipe on this machine: its missing stages one after the other, each with its log."""

import signal
import sys
import time
from pathlib import Path

from w2v2dist.config import to_yaml
from w2v2dist.jobs.local import last_line, run_local
from w2v2dist.jobs.recipe_stage import finish, make
from w2v2dist.recipes.prepare import check_new, hand_out, prepare
from w2v2dist.recipes.recipe import Recipe, Stage, read_json
from w2v2dist.recipes.state import end_path, write_json
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.runtime.preemption import EXIT_PREEMPTED
from w2v2dist.tasks.train import read_config
from w2v2dist.training.lock import locked

INTERRUPTED = (EXIT_PREEMPTED, 129, 130, 143)  # by a signal to us: HUP, INT, TERM


def run_recipe(recipe: Recipe, num_processes: int, again: str) -> int:
    """Make what is missing; trainings on `num_processes` (at most their slots). A stage that fails
    takes with it what depends on it, and nothing else. Exit status: 0 all done, EXIT_PREEMPTED a
    signal ended it, 1 a stage failed; `again` is the command that goes on. Raises ConfigError,
    InUseError."""
    check_new(recipe)
    with locked(recipe.folder):
        found = prepare(recipe, again)
        for name, state in found.items():
            if state.name in ("queued", "running"):
                raise ValueError(
                    f"{name} is in the hands of {state.job or 'another process'}: wait for it, or "
                    "end it; then give this command again"
                )
        failed: dict[str, str] = {}
        for number, (name, stage) in enumerate(recipe.stages.items(), 1):
            place = f"[{number}/{len(recipe.stages)}] {name}"
            if found[name].name == "done":
                print(f"{place}: done before", flush=True)
                continue
            if bad := [need for need in stage.needs if need in failed]:
                failed[name] = f"cancelled: it needs {bad[0]}"
                print(f"{place}: {failed[name]}, which failed", flush=True)
                continue
            started = time.perf_counter()
            print(f"{place} ({stage.kind}) …", flush=True)
            status = _run(recipe, stage, num_processes)
            if status in INTERRUPTED:
                print(f"{place}: interrupted; {again} goes on", flush=True)
                return EXIT_PREEMPTED
            if status:
                failed[name] = str(read_json(end_path(recipe.folder, name)).get("why", ""))
                print(f"{place}: FAILED: {failed[name]}", flush=True)
                continue
            print(f"{place}: done in {time.perf_counter() - started:.0f} s", flush=True)
    return _said(recipe, failed, again)


def _said(recipe: Recipe, failed: dict[str, str], again: str) -> int:
    """The last word of it."""
    if not failed:
        print(f"{recipe.name}: all {len(recipe.stages)} stages are done, in {recipe.folder}")
        return 0
    for name, why in failed.items():
        log = "" if why.startswith("cancelled") else f"; log: {log_of(recipe, recipe.stages[name])}"
        print(f"{name}: {why}{log}", file=sys.stderr)
    print(f"when the cause is mended, this goes on: {again}", file=sys.stderr)
    return 1


def log_of(recipe: Recipe, stage: Stage) -> Path:
    """Where a stage writes here."""
    return recipe.folder / "logs" / f"{stage.name}.log"


def _run(recipe: Recipe, stage: Stage, num_processes: int) -> int:
    """The exit status of a stage."""
    task, log = hand_out(recipe, stage), log_of(recipe, stage)
    log.parent.mkdir(parents=True, exist_ok=True)
    if not stage.is_training:
        with log.open("a", encoding="utf-8") as file:
            return make(task, file)
    config = read_config(str(stage.config), [*stage.overrides, f"run_dir={stage.folder}"])
    ranks = min(num_processes, config.data.virtual_world_size)
    VirtualRanks(config.data.virtual_world_size).check(ranks)
    logs = stage.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    resolved = task.with_suffix(".yaml")
    resolved.write_text(to_yaml(config), encoding="utf-8")
    started = time.time()
    end_path(recipe.folder, stage.name).unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    log.symlink_to((logs / "rank_0.log").absolute())
    status = run_local([str(resolved)], logs, ranks, quiet=True)
    if status == 0:
        made = read_json(task)
        finish(made, Path(made["folder"]), time.time() - started)
    else:
        why = f"a process was ended by signal {status - 128}" if status > 128 else last_line(logs)
        values = {"fingerprint": stage.fingerprint, "why": why, "status": status}
        if status in INTERRUPTED:
            values |= {"why": "ended by a signal; it goes on from its newest checkpoint"}
            values |= {"signal": status - 128 if status > 128 else int(signal.SIGTERM)}
        write_json(end_path(recipe.folder, stage.name), values)
    return status

"""What launch/submit.py does with a recipe: plan it, run it here, or submit and follow it."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from w2v2dist.config import ConfigError
from w2v2dist.jobs.cluster import ClusterConfig, minutes_of
from w2v2dist.jobs.recipe_jobs import RefusedError, check_sizes, submit_recipe
from w2v2dist.jobs.recipe_local import run_recipe
from w2v2dist.jobs.recipe_plan import lines
from w2v2dist.recipes.prepare import announced, check_corpora
from w2v2dist.recipes.recipe import Recipe, read_recipe
from w2v2dist.recipes.state import ENDS, State, states
from w2v2dist.training.lock import InUseError

POLL_S = 3.0


def run(
    args: argparse.Namespace,
    read_cluster: Callable[[], ClusterConfig],
    again: str,
    refused: Callable[[Sequence[str]], str],
) -> int:
    """The exit status of `launch/submit.py` for a recipe; `again` is the command that was given,
    `refused` what w2v2dist says against the words of a command. Raises ConfigError."""
    if args.nodes != "1" or args.autotune:
        option = "--autotune" if args.autotune else "--nodes"
        raise ConfigError(
            f"{option} is of one training, and {args.config} is a recipe: its trainings have their "
            "nodes in it (stages.NAME.nodes=8), and --autotune takes the file of one of them"
        )
    recipe = read_recipe(Path(args.config), args.overrides)
    _check_commands(recipe, refused)
    try:
        if args.local:
            return _here(recipe, args.processes, again)
        if args.dry_run:
            return _plan(recipe, read_cluster())
        return _submit(recipe, read_cluster(), args, again)
    except (RefusedError, InUseError, OSError) as error:
        said = f"sbatch refused {error}" if isinstance(error, RefusedError) else str(error)
        print(f"submit.py: {said}\n{again} goes on where this ended", file=sys.stderr)
        return 1


def _check_commands(recipe: Recipe, refused: Callable[[Sequence[str]], str]) -> None:
    """A mistyped option of an evaluation is told now, not when the pre-training is done. Raises
    ConfigError."""
    problems = [
        f"stages.{stage.group}.run: {said}"
        for stage in recipe.stages.values()
        for command in stage.commands
        if command[0] == "w2v2dist" and (said := refused(command[1:]))
    ]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _here(recipe: Recipe, processes: int | None, again: str) -> int:
    from w2v2dist.jobs.local import processes_here

    return run_recipe(recipe, processes_here(processes, sys.maxsize), again)


def _plan(recipe: Recipe, cluster: ClusterConfig) -> int:
    check_sizes(recipe, cluster)
    minutes_of(cluster.time)
    found = states(recipe)
    print(*lines(recipe, cluster, found, check_corpora(recipe, found)), sep="\n")
    print(*announced(found), "nothing was submitted (--dry-run)", sep="\n")
    return 0


def _submit(recipe: Recipe, cluster: ClusterConfig, args: argparse.Namespace, again: str) -> int:
    from w2v2dist.jobs.cluster import check_sbatch

    check_sbatch()
    jobs = submit_recipe(recipe, cluster, minutes_of(cluster.time), again)
    found = states(recipe)
    count = sum(state.name == "done" for state in found.values())
    if not jobs:
        print("nothing to submit: every stage is done, or has its job")
    print(
        f"{recipe.name}: {count} of {len(found)} stages are done, {len(jobs)} jobs were submitted",
        f"where it is: w2v2dist status {recipe.folder}",
        sep="\n",
    )
    return follow(recipe, again) if args.follow and count < len(found) else 0


def follow(recipe: Recipe, again: str) -> int:
    """Print what changes until no job is left: 0 if all stages are done then, else 1. Ctrl-C stops
    only this."""
    told: dict[str, str] = {}
    try:
        while True:
            found = states(recipe)
            for name, state in found.items():
                if told.get(name) != state.name and state.name not in ("waiting", "queued"):
                    print(f"{name}: {state.name}", flush=True)
                told[name] = state.name
            if not {"queued", "running", "unknown"}.intersection(told.values()):
                break
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        print(f"\nthe jobs go on; w2v2dist status {recipe.folder} shows them")
        return 0
    return ended(recipe, found, again)


def ended(recipe: Recipe, found: dict[str, State], again: str) -> int:
    """Say what failed, and what was cancelled for it: 0 where all is done, else 1."""
    if all(state.name == "done" for state in found.values()):
        print(f"{recipe.name}: all {len(found)} stages are done")
        return 0
    for name, state in found.items():
        if state.name in ENDS:
            print(f"{name} {state.name}: {state.why}; log: {state.log}", file=sys.stderr)
        elif state.name != "done":
            print(f"{name} was not made: {state.why or 'its job was cancelled'}", file=sys.stderr)
    print(f"when the cause is mended, this goes on: {again}", file=sys.stderr)
    return 1

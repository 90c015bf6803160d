"""Where a recipe is: a line for each stage that is at work or has failed, the others together."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from w2v2dist.config import ConfigError
from w2v2dist.recipes.recipe import RESOLVED, Recipe, Stage, command_of, read_recipe
from w2v2dist.recipes.state import ENDS, State, states
from w2v2dist.reporting.status import as_json, is_run, read_status
from w2v2dist.reporting.words import duration, measure, steps
from w2v2dist.runtime.logging import console

COLOURS = {"done": "cyan", "running": "green", "failed": "red", "stopped": "yellow"}
COLOURS |= {"blocked": "red", "changed": "magenta"}
ALONE = ("running", *ENDS)
AT_WORK = {"queued", "running", "unknown"}


def show(path: Path, interval_s: float, *, follow: bool, json_lines: bool) -> int:
    """Print where a recipe is; with `follow` at each change, until no job is left. Exit status 1
    where a stage has failed. Raises ConfigError."""
    recipe, note = started(path)
    told = ""
    while True:
        found = states(recipe)
        runs = {n: _run(recipe.stages[n]) for n, s in found.items() if s.name == "running"}
        said = as_json(_record(recipe, found, runs)) if json_lines else _key(found, runs)
        if said != told:
            told = said
            if json_lines:
                print(said, flush=True)
            else:
                _print(recipe, found, runs, note)
        try:
            if not follow or not AT_WORK.intersection(s.name for s in found.values()):
                break
            time.sleep(interval_s)
        except KeyboardInterrupt:
            break
    return int(any(state.name in ENDS for state in found.values()))


def started(path: Path) -> tuple[Recipe, str]:
    """The recipe as its folder has it, with the settings of the command that started it; and in
    what the file that was named differs."""
    recipe = read_recipe(path)
    if path.is_dir() or not (recipe.folder / RESOLVED).exists():
        return recipe, ""
    of_folder = read_recipe(recipe.folder)
    if of_folder.name != recipe.name:
        raise ConfigError(
            f"{recipe.folder} belongs to the recipe {of_folder.name!r}, not to {recipe.name!r}: "
            "name the folder of this one"
        )
    new = [
        name
        for name, stage in recipe.stages.items()
        if name not in of_folder.stages or of_folder.stages[name].fingerprint != stage.fingerprint
    ]
    if not new:
        return of_folder, ""
    return of_folder, (
        f"shown as it was started; by {path} alone, without the settings of that command, "
        f"{len(new)} stages would be others ({new[0]}, …)"
    )


def _run(stage: Stage) -> dict[str, Any] | None:
    """The status of a training that has begun."""
    if not stage.is_training or not is_run(stage.folder):
        return None
    return read_status(stage.folder)


def _key(found: Mapping[str, State], runs: Mapping[str, Any]) -> str:
    steps_ = {name: run and run["step"] for name, run in runs.items()}
    return repr([*((n, s.name, s.job) for n, s in found.items()), steps_])


def _record(recipe: Recipe, found: Mapping[str, State], runs: Mapping[str, Any]) -> dict[str, Any]:
    stages = {
        name: {
            "state": state.name,
            "kind": recipe.stages[name].kind,
            "needs": recipe.stages[name].needs,
            "folder": str(recipe.stages[name].folder),
            "job": state.job or None,
            "log": str(state.log) if state.log else None,
            "why": state.why or None,
            "seconds": state.seconds,
            **({"run": runs[name]} if runs.get(name) else {}),
        }
        for name, state in found.items()
    }
    return {"recipe": recipe.name, "folder": str(recipe.folder), "stages": stages}


def _print(recipe: Recipe, found: Mapping[str, State], runs: Mapping[str, Any], note: str) -> None:
    count = sum(state.name == "done" for state in found.values())
    console.print(
        f"recipe {recipe.name}   {recipe.folder}   {count} of {len(found)} stages are done",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("job", no_wrap=True)
    table.add_column("")
    for name, state, more in rows(recipe, found, runs):
        shown = Text(state.name, style=COLOURS.get(state.name, ""))
        table.add_row(name, shown, Text(state.job), Text(more))
    console.print(table)
    if note:
        console.print(f"note: {note}", markup=False, style="yellow")
    if any(state.name in (*ENDS, "blocked", "changed") for state in found.values()):
        console.print(f"when the cause is mended, this goes on: {command_of(recipe)}", markup=False)


def rows(
    recipe: Recipe, found: Mapping[str, State], runs: Mapping[str, Any]
) -> Iterator[tuple[str, State, str]]:
    """What to show: a name, or how many of a group; the state of one of them; and more of it."""
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, state in found.items():
        group = recipe.stages[name].group
        together[group, name if state.name in ALONE else f"all {state.name}"].append(name)
    for (group, _), names in together.items():
        state = found[names[0]]
        name = names[0] if len(names) == 1 else f"{group} ×{len(names)}"
        longest = max((found[n].seconds or 0.0 for n in names), default=0.0)
        more = state.why
        if run := runs.get(names[0]):
            more = f"step {steps(run)}, {measure(run)}"
            more += f", {duration(run['seconds_left'])} left" if run["seconds_left"] else ""
        elif state.name == "done":
            more = f"{'at most ' if len(names) > 1 else ''}{duration(longest)}" if longest else ""
        elif state.name == "changed":
            more = "; ".join(f"{k}: {a} -> {b}" for k, (a, b) in state.changes.items())
        if state.name in ENDS:
            more += f"; log: {state.log}"
        yield name, state, more

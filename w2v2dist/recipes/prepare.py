"""Before a stage is handed out: are the corpora there, is the folder this recipe's, and what was
made with other settings is moved aside."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from w2v2dist import __version__
from w2v2dist.config import ConfigError
from w2v2dist.recipes.prints import corpus_print, is_empty
from w2v2dist.recipes.recipe import DONE, IDENTITY, RESOLVED, Recipe, Stage, identity_of, read_json
from w2v2dist.recipes.state import (
    State,
    part_of,
    states,
    task_path,
    write_json,
)
from w2v2dist.runtime.files import write_whole


def check_new(recipe: Recipe) -> None:
    """Check all where the folder is not the recipe's yet: what is refused then leaves nothing
    behind, not even the lock that `prepare` needs. Raises ConfigError."""
    if not identity_of(recipe.folder):
        _checked(recipe)


def _checked(recipe: Recipe) -> tuple[dict[str, State], dict[str, Any]]:
    """Where each stage is, and what the folder is of. Raises ConfigError."""
    found = states(recipe)
    missing = check_corpora(recipe, found)
    identity = _identity(recipe, found)
    _check_queue(recipe, found)
    if missing:
        raise ConfigError("\n".join(missing))
    return found, identity


def prepare(recipe: Recipe, command: str = "") -> dict[str, State]:
    """Check all, then move aside what has changed, saying so, and write down which recipe this is
    and which command started it; the caller holds the folder's lock. Returns where each stage is
    then. Raises ConfigError before anything is touched."""
    found, identity = _checked(recipe)
    for line in announced(found):
        print(line, flush=True)
    renewed = _renewed(recipe, identity)
    for corpus in renewed:
        print(f"corpora.{corpus} has changed since; nothing was made of it then", flush=True)
    for name, stage in recipe.stages.items():
        stale = not renewed.isdisjoint(stage.reads) and not stage.is_training
        if stale or found[name].name in ("changed", "waiting", "blocked"):
            _move_aside(recipe, stage, stale=stale)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    write_json(recipe.folder / IDENTITY, identity | ({"command": command} if command else {}))
    text = yaml.safe_dump(_plain(dict(recipe.written)), sort_keys=False, allow_unicode=True)
    first = f"# {recipe.path} as it was started; of `{recipe.name}`\n"
    write_whole(recipe.folder / RESOLVED, first + text)
    return states(recipe)


def _plain(value: Any) -> Any:
    """YAML's own types in place of ours, which remember how a number was written."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    return int(value) if isinstance(value, int) else float(value)


def check_corpora(recipe: Recipe, found: Mapping[str, State]) -> list[str]:
    """A line for each corpus that a stage still has to read, and each given result, that is not
    there, or is empty (a disk that is not mounted, a download that has not begun)."""
    readers: dict[str, list[str]] = {}
    for name, stage in recipe.stages.items():
        for corpus in stage.reads if found[name].name != "done" else ():
            optional = recipe.corpora[corpus] is None and stage.kind == "speech"
            if not optional:
                readers.setdefault(corpus, []).append(name)
    absent = [
        f"given.{name} is {path}, which is not there: give its place, or an id of a hub (org/name)"
        for name, path in recipe.given.items()
        if not Path(path).exists() and (path[:1] in "/.~" or path.count("/") != 1)
    ]
    return absent + [
        f"corpora.{corpus} is {recipe.corpora[corpus] or 'null'}, which {wrong}, but "
        f"{names[0]} reads it: give its place with corpora.{corpus}=PATH"
        for corpus, names in readers.items()
        if (wrong := _wrong(recipe.corpora[corpus]))
    ]


def _wrong(corpus: str | None) -> str:
    """Why a stage cannot read a corpus; "" where it may."""
    if not corpus or not Path(corpus).exists():
        return "is not there"
    try:
        return "is empty" if is_empty(corpus) else ""
    except OSError as error:
        return f"cannot be read ({error})"


def _identity(recipe: Recipe, found: Mapping[str, State]) -> dict[str, Any]:
    """What the folder is of, with the versions of the corpora. Raises ConfigError where it is of
    another recipe, or of others."""
    old = identity_of(recipe.folder)
    first = next(p for p in (recipe.folder, *recipe.folder.parents) if os.path.lexists(p))
    if not first.is_dir():  # also a link that leads nowhere
        raise ConfigError(f"folder is {recipe.folder}, but {first} is no folder: use folder=DIR")
    if not old and recipe.folder.exists():
        # Stages made by hand are fine, and who looks at a report first has it there
        known = {"lock", "logs", "jobs", "emissions", "report.html", *recipe.stages}
        if strange := sorted(
            {p.name.removesuffix(".part") for p in recipe.folder.iterdir()} - known
        ):
            raise ConfigError(
                f"{recipe.folder} has {strange[0]} in it and belongs to no recipe: use an empty "
                "folder (folder=DIR)"
            )
    if old and old.get("recipe") != recipe.name:
        raise ConfigError(
            f"{recipe.folder} belongs to the recipe {old.get('recipe')!r} and cannot be used for "
            f"{recipe.name!r}: give this one another with folder=DIR"
        )
    settings = [*recipe.overrides]
    if recipe.path == recipe.folder / RESOLVED:  # they come on top of those that are in it
        settings = [*old.get("settings", []), *settings]
    about = {"recipe": recipe.name, "version": __version__, "settings": settings}
    return {**old, **about, "corpora": _versions(recipe, old.get("corpora", {}), found)}


def _versions(
    recipe: Recipe, before: Mapping[str, Any], found: Mapping[str, State]
) -> dict[str, Any]:
    """The versions of the corpora. Raises ConfigError for one of which another has been used."""
    corpora: dict[str, Any] = dict(before)
    read = {corpus for stage in recipe.stages.values() for corpus in stage.reads}
    for corpus, path in recipe.corpora.items():
        if corpus not in read:
            continue
        if path is not None and _wrong(path):
            continue  # its shards are made, and it may be gone, or its disk not mounted
        try:
            now = None if path is None else corpus_print(path)
        except OSError as error:
            raise ConfigError(
                f"corpora.{corpus} is {path}, which cannot be read: {error}"
            ) from None
        old = corpora.get(corpus, {"print": now, "path": path})
        if old["print"] != now and (of_then := _made_of(recipe, corpus, found)):
            raise ConfigError(
                f"{recipe.folder} was made from another version of corpora.{corpus}: "
                f"{old['path']} then, {path} now, and names, sizes or texts of files differ. "
                "Nothing was touched: use the files of then, or folder=DIR for the new ones; "
                f"there given.{of_then.name}={of_then} would keep what is made"
            )
        corpora[corpus] = {"print": now, "path": path}
    return corpora


def _made_of(recipe: Recipe, corpus: str, found: Mapping[str, State]) -> Path | None:
    """A stage's folder with results of a corpus, or with a job that reads it; None where none has:
    a version of which nothing could be made, such as half a download, binds nobody."""
    named = f"{{corpora.{corpus}}}"
    for pattern in (f"*/{DONE}", f"replaced/*/{DONE}"):
        for file in sorted(recipe.folder.glob(pattern)):
            if named in json.dumps(read_json(file).get("what")):
                return file.parent
    for name, stage in recipe.stages.items():
        begun = stage.is_training and (stage.folder / "checkpoints").exists()
        at_work = found[name].name in ("queued", "running", "unknown")
        if corpus in stage.reads and (begun or at_work):
            return stage.folder
    return None


def _check_queue(recipe: Recipe, found: Mapping[str, State]) -> None:
    """Nothing that was made to other settings may still be at work. Raises ConfigError."""
    if unknown := [name for name, state in found.items() if state.name == "unknown"]:
        raise ConfigError(
            f"{unknown[0]} was submitted as job {found[unknown[0]].job}, but squeue does not "
            "answer here, so nobody knows whether it still runs: use a login node of the cluster"
        )
    alive = {n: s for n, s in found.items() if s.name in ("queued", "running") and s.changes}
    if alive:
        name, state = next(iter(alive.items()))
        jobs = " ".join(dict.fromkeys(s.job for s in alive.values()))
        raise ConfigError(
            f"{name} has changed ({_changes(state)}), but job {state.job} is at work on it with "
            f"the old settings: take the change back, or end what is of before with `scancel "
            f"{jobs}` and give this command again"
        )


def announced(found: Mapping[str, State]) -> Iterator[str]:
    """What will be redone, and why."""
    for name, state in found.items():
        if state.name == "changed":
            yield (
                f"changed: {name} ({_changes(state)}); what is there moves to replaced/, and it is "
                "made anew"
            )


def _changes(state: State, count: int = 3) -> str:
    lines = [f"{key}: {_short(old)} -> {_short(new)}" for key, (old, new) in state.changes.items()]
    return "; ".join(lines[:count]) + ("; …" if len(lines) > count else "")


def _short(value: Any, limit: int = 200) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _renewed(recipe: Recipe, identity: Mapping[str, Any]) -> set[str]:
    """The corpora that had another version when the recipe was last given."""
    old = identity_of(recipe.folder).get("corpora", {})
    return {
        corpus
        for corpus, version in identity["corpora"].items()
        if corpus in old and old[corpus]["print"] != version["print"]
    }


def _move_aside(recipe: Recipe, stage: Stage, *, stale: bool = False) -> None:
    """Make room for a stage: what other settings made, or (`stale`) began of another version of a
    corpus, goes to replaced/; what these settings made there, before they were changed and changed
    back, returns."""
    task = read_json(task_path(recipe.folder, stage.name))
    if stale or task.get("fingerprint") != stage.fingerprint:
        kept = recipe.folder / "replaced"
        stamp = time.strftime("%Y%m%d-%H%M%S")
        adopted = stage.is_training and not task and not stage.record()  # started by hand
        for folder in (stage.folder, part_of(stage.folder)):
            if folder.exists() and not adopted:
                kept.mkdir(exist_ok=True)
                folder.rename(_free(kept / f"{folder.name}-{stamp}"))
        for folder in sorted(kept.glob(f"{stage.name}-[0-9]*")):
            if read_json(folder / DONE).get("fingerprint") == stage.fingerprint:
                print(f"{stage.name}: its results are there again, from {folder}", flush=True)
                folder.rename(stage.folder)
                break


def _free(path: Path) -> Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name}.{number}")
    return path


def hand_out(recipe: Recipe, stage: Stage) -> Path:
    """Write down what a job of the stage is to do: editing the recipe while it waits must not
    change it. Returns the file."""
    path = task_path(recipe.folder, stage.name)
    in_place = stage.is_training or stage.kind == "shards"
    folder = stage.folder.absolute()
    write_json(
        path,
        {
            "stage": stage.name,
            "kind": stage.kind,
            "fingerprint": stage.fingerprint,
            "what": stage.what,
            "folder": str(folder),
            "part": str(folder if in_place else part_of(folder)),
            "templates": stage.templates,
            "outputs": stage.outputs,
            "needs": {
                need: [str(recipe.stages[need].folder.absolute()), recipe.stages[need].fingerprint]
                for need in stage.needs
            },
            "lock": str(folder if stage.is_training else path.with_suffix("").absolute()),
            "cwd": str(Path.cwd()),
            "log": str((recipe.folder / "logs" / f"{stage.name}.log").absolute()),
            "job": "",
        },
    )
    return path

"""A recipe's YAML to its graph of stages, with all mistakes at once."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from w2v2dist.config import (
    ConfigError,
    changeable,
    flatten,
    from_dict,
    is_within,
    parse_overrides,
    read_yaml,
    to_dict,
)
from w2v2dist.recipes.expand import (
    VALUE,
    canonical,
    expanded,
    filled,
    references,
    spelled,
    words,
)
from w2v2dist.recipes.places import Places, lasting_path, path_of
from w2v2dist.recipes.prints import given_print
from w2v2dist.recipes.recipe import OUT, OUTPUTS, RESOLVED, Argv, Cell, Recipe, Stage
from w2v2dist.recipes.written import RecipeFile, StageFile, overridden, some
from w2v2dist.tasks.train import read_config

REPOSITORY = Path(__file__).parents[2]
# Beside the stages in the recipe's folder
RESERVED = {"logs", "jobs", "replaced", "emissions", "lock"}
SCRIPTS = {"shards/build.py": "shards", "launch/fetch_speech.py": "speech"}
FOLDERS = "runs/recipes"
# A resumed run may change them, but what comes of it depends on them
COUNT = {"data.train", "data.valid", "loop.validate_every"}


def build_recipe(path: Path, overrides: list[str]) -> Recipe:
    """See `read_recipe`."""
    file = path / RESOLVED if path.is_dir() else path
    written = overridden(read_yaml(file), parse_overrides(overrides))
    if "recipe" not in written:
        raise ConfigError(f"{file} is no recipe: it has no key `recipe` with its name")
    stages = written.get("stages")
    if isinstance(stages, dict):  # null: left out, by a file over its base or on the command line
        written["stages"] = {name: entry for name, entry in stages.items() if entry is not None}
    read = from_dict(RecipeFile, written)
    # A folder that was filled is where it is now
    folder = (
        path if path.is_dir() else Path(str(path_of(read.folder or f"{FOLDERS}/{read.recipe}")))
    )
    if bad := [sign for sign in "{}," if sign in str(folder)]:
        raise ConfigError(
            f"folder is {folder} but must have no {bad[0]}: commands use it as a sign"
        )
    corpora = {name: path_of(value) for name, value in read.corpora.items()}
    given = {
        name: str(lasting_path(value)) for name, value in read.given.items() if value is not None
    }
    drafts = _drafts(read, folder)
    if unknown := [name for name in given if name not in drafts]:
        raise ConfigError(f"given.{unknown[0]}: the recipe has no such stage: {some(drafts)}")
    kinds = {*OUTPUTS, *(draft.stage.kind for draft in drafts.values())}
    if unknown := [kind for kind in read.resources if kind not in kinds]:
        raise ConfigError(f"resources.{unknown[0]}: no stage is of that kind: {', '.join(kinds)}")
    drafts = _wanted(_connected(drafts), set(given))
    return Recipe(
        name=read.recipe,
        folder=folder,
        path=file,
        stages=_finished(drafts, Places(folder, corpora, given)),
        corpora=corpora,
        given=given,
        written={
            **written,
            "folder": str(folder),
            "corpora": {name: lasting_path(value) for name, value in read.corpora.items()},
            "given": given,
        },
        overrides=tuple(overrides),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A stage whose corpora and references are not yet paths: what a fingerprint is made of."""

    stage: Stage  # without templates
    needs: tuple[str, ...] = ()
    commands: tuple[Argv, ...]
    settings: tuple[str, ...]  # key=value of a training
    globs: tuple[str, ...]
    aside: tuple[str, ...] = ()  # that it needs, but for keys that change no number: of a probe
    what: Any  # that the stage does, as JSON has it
    reads: tuple[str, ...]  # corpora


def _drafts(read: RecipeFile, folder: Path) -> dict[str, Draft]:
    """All stages, alone. Raises ConfigError with every mistake."""
    out: dict[str, Draft] = {}
    problems: list[str] = []
    for group, entry in read.stages.items():
        try:
            found = list(expanded(group, entry.each, read.let))
        except ConfigError as error:
            problems.append(str(error))
            continue
        for name, values in found:
            try:
                if name in out or name in RESERVED:
                    reason = "a name of the recipe's folder" if name in RESERVED else "there twice"
                    raise ConfigError(f"stages.{group}: {name} is {reason}: choose another")
                out[name] = _draft(name, group, entry, values, read, folder / name)
            except ConfigError as error:
                told = str(error).replace("\n", f"\nstages.{name}: ")
                problems.append(told if told.startswith("stages.") else f"stages.{name}: {told}")
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return out


def _draft(
    name: str, group: str, entry: StageFile, values: dict[str, Any], read: RecipeFile, folder: Path
) -> Draft:
    where = f"stages.{group}"
    if (entry.train is None) == (entry.run is None):
        raise ConfigError(f"{where} must have either `train: CONFIG` or `run: COMMAND`")
    config: str | None = None
    settings: tuple[str, ...] = ()
    counting: tuple[str, ...] = ()
    what: Any
    nodes = spelled(filled(entry.nodes, values, f"{where}.nodes"))
    if entry.train is not None:
        config = _found(spelled(filled(entry.train, values, f"{where}.train")))
        set_ = flatten(filled(entry.set, values, f"{where}.set"))
        settings = tuple(f"{key}={_as_text(value)}" for key, value in set_.items())
        resolved = read_config(config, [*settings, f"run_dir={OUT}"])
        kind, free = str(resolved.task), _free(resolved)
        what = {k: v for k, v in flatten(to_dict(resolved)).items() if not is_within(k, free)}
        counting = tuple(s for s in settings if not is_within(s.partition("=")[0], free))
        commands = _training(config, settings, nodes)
    else:
        lines = entry.run if isinstance(entry.run, list) else [entry.run]
        commands = tuple(words(line, values, f"{where}.run") for line in lines)
        kind, what = _kinds(commands, where), [canonical(command) for command in commands]
    raw = [*settings, *(word for command in commands for word in command)]
    cell = None if entry.cell is None else filled(entry.cell, values, f"{where}.cell")
    return Draft(
        stage=Stage(
            name=name,
            kind=kind,
            group=group,
            folder=folder,
            config=config,
            nodes=nodes,
            resources=_resources(read, kind, entry),
            hours=_hours(filled(entry.hours, values, f"{where}.hours"), where),
            cell=None if cell is None else from_dict(Cell, cell, f"{where}.cell."),
        ),
        commands=commands,
        settings=settings,
        aside=tuple({*references(iter(settings))} - {*references(iter(counting))}),
        globs=tuple(spelled(filled(need, values, f"{where}.needs")) for need in entry.needs),
        what=what,
        reads=tuple(dict.fromkeys(_corpora(raw, read, where))),
    )


def _hours(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, int | float) and 0 <= value < math.inf):
        return None if value is None else float(value)
    raise ConfigError(f"{where}.hours is {value!r} but must be a number, >= 0, or null")


def _training(config: str, settings: tuple[str, ...], nodes: str) -> tuple[Argv, ...]:
    """The command that trains, and that continues the training."""
    options = [] if nodes == "1" else ["--nodes", nodes]
    return (("python", "launch/submit.py", *options, config, *settings, f"run_dir={OUT}"),)


def _resources(read: RecipeFile, kind: str, entry: StageFile) -> dict[str, Any]:
    of_kind = read.resources.get(kind, {})
    if not isinstance(of_kind, dict):
        raise ConfigError(
            f"resources.{kind} is {of_kind!r} but must be a mapping of sbatch options"
        )
    both = {**of_kind, **entry.resources}
    found = {spelled(k).replace("_", "-"): spelled(v) for k, v in both.items()}
    if bad := [text for item in found.items() for text in item if not text.isprintable()]:
        raise ConfigError(
            f"resources.{kind} has {bad[0]!r} but must be options of sbatch, a line each"
        )
    return found


def _found(config: str) -> str:
    """A training's file: as it is named from here, or else from the repository."""
    if not Path(config).exists() and (REPOSITORY / config).exists():
        return str(REPOSITORY / config)
    return config


def _as_text(value: Any) -> str:
    """A value for key=value."""
    if isinstance(value, str | int | float) or value is None:
        return spelled(value)
    return json.dumps(value, ensure_ascii=False)


def _free(config: Any) -> set[str]:
    """The settings of which another value makes no other training: what a resumed run may change,
    and where it is."""
    return {*changeable(type(config)), "run_dir"} - COUNT


def _kinds(commands: tuple[Argv, ...], where: str) -> str:
    """What commands make: the last one's kind. Raises ConfigError."""
    kinds = [_kind(command, where) for command in commands]
    if not any(OUT in word for command in commands for word in command):
        raise ConfigError(f"{where}.run must write to {OUT}, the stage's folder")
    return kinds[-1]


def _kind(command: Argv, where: str) -> str:
    """What a command makes. Raises ConfigError for one that is not of this project."""
    if command[:1] == ("python",) and len(command) > 1 and command[1] in SCRIPTS:
        return SCRIPTS[command[1]]
    if command[:1] != ("w2v2dist",) or len(command) < 2:
        raise ConfigError(
            f"{where}.run is `{' '.join(command)}` but must be a command of this project: w2v2dist "
            f"…, or python {', python '.join(SCRIPTS)}"
        )
    if command[1] == "lm":
        return command[2] if len(command) > 2 else ""
    return "tune" if command[1] == "evaluate" and "--tune" in command else command[1]


def _corpora(raw: list[str], read: RecipeFile, where: str) -> Iterator[str]:
    """The corpora that a stage names. Raises ConfigError for an unknown one."""
    for name in (m for text in raw for m in VALUE.findall(text)):
        first, _, rest = name.partition(".")
        if first == "corpora":
            if rest not in read.corpora:
                raise ConfigError(
                    f"{where} has {{{name}}}, but the corpora are: {', '.join(read.corpora)}"
                )
            yield rest


def _connected(drafts: dict[str, Draft]) -> dict[str, Draft]:
    """The stages with what each needs, in an order in which each comes after it. Raises
    ConfigError."""
    problems: list[str] = []
    needs: dict[str, list[str]] = {}
    for name, draft in drafts.items():
        raw = (w for command in (*draft.commands, draft.settings) for w in command)
        named = references(raw)
        problems += [
            f"stages.{draft.stage.group}: {name} needs @{n}, but there is no such stage: "
            f"{some(drafts)}"
            for n in named
            if n not in drafts
        ]
        for glob in draft.globs:
            matches = [n for n in drafts if fnmatchcase(n, glob.removeprefix("@")) and n != name]
            if not matches:
                problems.append(f"stages.{draft.stage.group}.needs: no stage is called {glob}")
            named += matches
        needs[name] = list(dict.fromkeys(named))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return {name: replace(drafts[name], needs=tuple(needs[name])) for name in _ordered(needs)}


def _ordered(needs: Mapping[str, list[str]]) -> list[str]:
    """The names in the order of the file, but each after what it needs. Raises ConfigError."""
    out: dict[str, None] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        if name in out:
            return
        if name in path:
            circle = " needs ".join([*path[path.index(name) :], name])
            raise ConfigError(f"stages need each other in a circle: {circle}")
        path.append(name)
        for need in needs[name]:
            visit(need)
        path.pop()
        out[name] = None

    for name in needs:
        visit(name)
    return list(out)


def _wanted(drafts: dict[str, Draft], given: set[str]) -> dict[str, Draft]:
    """The stages without those that are given, and without what only these need."""
    needed = {need for draft in drafts.values() for need in draft.needs}
    kept: set[str] = set()
    for name in reversed(drafts):
        wanted = name not in needed or any(
            name in drafts[other].needs for other in kept if other not in given
        )
        if wanted and name not in given:
            kept.add(name)
    return {name: draft for name, draft in drafts.items() if name in kept}


def _finished(drafts: dict[str, Draft], places: Places) -> dict[str, Stage]:
    """The stages with their paths and fingerprints, in order."""
    out: dict[str, Stage] = {}
    prints: dict[str, str] = {name: given_print(path) for name, path in places.given.items()}
    for name, draft in drafts.items():
        needs = {need: prints[need] for need in draft.needs if need not in draft.aside}
        absent = [corpus for corpus in draft.reads if places.corpora[corpus] is None]
        said = [draft.what, needs, absent] if absent else [draft.what, needs]
        prints[name] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        templates = tuple(places.command(command) for command in draft.commands)
        out[name] = replace(
            draft.stage,
            needs=tuple(need for need in draft.needs if need not in places.given),
            templates=templates,
            overrides=tuple(places.put(text) for text in draft.settings),
            reads=draft.reads,
            what=draft.what,
            fingerprint=prints[name],
        )
    return out

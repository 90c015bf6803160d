"""What a recipe has reached in each place of the tables: its evaluations, seed by seed, and what of
them is missing or cannot be used, and why."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError
from w2v2dist.decode.significance import seeds_interval
from w2v2dist.recipes.recipe import DONE, EVALUATION, Cell, Recipe, Stage, digest_of
from w2v2dist.recipes.state import ENDS, State, changes_of, states

RATES = ("wer", "per", "cer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """An evaluation that counts: its rate (a fraction) and its 95 % interval by the bootstrap, NaN
    where an older version wrote none."""

    rate_name: str  # wer, per or cer
    rate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """An evaluation that is not there, or not to be used: the stage that brings it, and where it
    is, in words."""

    stage: str
    seed: int
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place in the tables: what there is by seed, and what is missing of what is planned."""

    row: str
    column: str
    decoder: str
    found: Mapping[int, Reading]
    missing: tuple[Missing, ...]

    @property
    def num_planned(self) -> int:
        """Seeds of the recipe."""
        return len(self.found.keys() | {m.seed for m in self.missing})

    @property
    def mean(self) -> float:
        """Over the seeds that there are; NaN where there are none."""
        rates = [reading.rate for reading in self.found.values()]
        return statistics.fmean(rates) if rates else math.nan

    @property
    def deviation(self) -> float:
        """Over the seeds (n - 1); NaN of fewer than two."""
        rates = [reading.rate for reading in self.found.values()]
        return statistics.stdev(rates) if len(rates) > 1 else math.nan

    @property
    def interval(self) -> tuple[str, float, float]:
        """The 95 % interval of the mean and what it is over: "seeds" (Student's t), of one seed
        "utterances" (the bootstrap); "" where there is none."""
        readings = [*self.found.values()]
        if len(readings) > 1:
            return "seeds", *seeds_interval([reading.rate for reading in readings])
        if not readings or math.isnan(readings[0].low + readings[0].high):
            return "", math.nan, math.nan
        return "utterances", readings[0].low, readings[0].high


def places_of(recipe: Recipe) -> list[Place]:
    """The places that the recipe's stages fill, in their order. Raises ConfigError where two fill
    one."""
    where = states(recipe)
    by_place: dict[tuple[str, str, str], dict[int, Reading | Missing]] = {}
    for stage in recipe.stages.values():
        if (cell := stage.cell) is not None:
            seeds = by_place.setdefault((cell.row, cell.split, cell.decoder), {})
            if cell.seed in seeds:
                raise ConfigError(
                    f"{recipe.path}: {stage.name} has the cell of another stage ({cell.row}, "
                    f"{cell.split}, {cell.decoder}, seed {cell.seed}): give one another seed"
                )
            seeds[cell.seed] = _read(recipe, stage, cell, where)
    return [
        Place(
            row=row,
            column=column,
            decoder=decoder,
            found={s: r for s, r in sorted(seeds.items()) if isinstance(r, Reading)},
            missing=tuple(m for _, m in sorted(seeds.items()) if isinstance(m, Missing)),
        )
        for (row, column, decoder), seeds in by_place.items()
    ]


def _read(
    recipe: Recipe, stage: Stage, cell: Cell, where: Mapping[str, State]
) -> Reading | Missing:
    """The evaluation of a stage, where it is the one that the recipe means."""

    def missing(why: str) -> Missing:
        return Missing(stage=stage.name, seed=cell.seed, why=why)

    path = stage.folder / EVALUATION
    if not path.exists():
        return missing(_where(recipe, stage, where))
    record = stage.record()
    if not record:
        return missing(f"not used: {path} is there, but no {DONE} of this recipe beside it")
    if record.get("fingerprint") != stage.fingerprint:
        changed = ", ".join(changes_of(stage, record)) or "what it does"
        return missing(f"not used: {path} was made before a change ({changed})")
    try:
        if record.get("digest", digest_of(path)) != digest_of(path):
            raise ValueError("it is not what the stage wrote")
        about = json.loads(path.read_bytes())
        return _checked(recipe, stage, about)
    except (OSError, ValueError, RecursionError) as error:
        return missing(f"not used: {path} cannot be used ({error}); remove it")


def _where(recipe: Recipe, stage: Stage, where: Mapping[str, State]) -> str:
    """Where a stage is, in words; of a blocked one what blocks it, wherever that stands."""
    state, name = where[stage.name], ""
    while state.name == "blocked":
        name = next(n for n in stage.needs if where[n].name in (*ENDS, "blocked"))
        stage, state = recipe.stages[name], where[name]
    said = f"{name} {state.name}" if name else state.name
    log = f" ({state.log})" if state.log is not None and state.name in ENDS else ""
    return f"{said}: {state.why}{log}" if state.why else f"{said}{log}"


def _checked(recipe: Recipe, stage: Stage, about: Any) -> Reading:
    """An evaluation's numbers. Raises ValueError where they are none, or of something else than the
    stage evaluates."""
    if not isinstance(about, dict):
        raise ValueError("it holds no mapping")
    asked = about.get("asked")
    for what, expected in _named(recipe, stage).items():
        said = str(asked.get(what, "")) if isinstance(asked, dict) else ""
        if absent := [path.name for path in expected if not _is_of(said, path)]:
            raise ValueError(f"it is of {what} {said or '?'}, not of {', '.join(absent)}")
    name = next((rate for rate in RATES if rate in about), None)
    if name is None:
        raise ValueError("it has no error rate")
    rate, low, high = (about.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
    for key, value in ((name, rate), (f"{name}_low", low), (f"{name}_high", high)):
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{key} is {value!r} but must be a number, 0 or more")
    if not math.isfinite(rate):
        raise ValueError(f"{name} is {rate} but must be a number, 0 or more")
    return Reading(rate_name=name, rate=float(rate), low=float(low), high=float(high))


def _is_of(said: str, folder: Path) -> bool:
    """Whether one of the paths that were `said` is a folder, or in it: by its name, wherever the
    recipe lies now, or by where a link leads."""
    real = folder.resolve()
    paths = [Path(path) for path in said.split(",")]
    return any(folder.name in path.parts or path.is_relative_to(real) for path in paths)


def _named(recipe: Recipe, stage: Stage) -> dict[str, list[Path]]:
    """The folders of stages that an evaluation is made of: its model, and its data."""
    for command in stage.commands:
        words = list(command)
        if "evaluate" in words[:-1]:
            at = words.index("evaluate") + 1
            data = words[words.index("--data") + 1] if "--data" in words[:-1] else ""
            named = {"model": [Path(words[at])], "data": [Path(path) for path in data.split(",")]}
            return {
                what: [path for path in paths if path.name in recipe.stages]
                for what, paths in named.items()
            }
    return {}

"""What a recipe would need before anything is there: its graph with commands, GPU hours, disk."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from w2v2dist.jobs.cluster import ClusterConfig
from w2v2dist.jobs.plan import FLAC_BYTES_PER_HOUR, make_plan
from w2v2dist.jobs.recipe_jobs import placed
from w2v2dist.recipes.recipe import Recipe, Stage
from w2v2dist.recipes.state import State

ADAM_BYTES = 12  # a parameter of a checkpoint: fp32 weights, both moments
FRAMES_PER_HOUR, SYMBOLS = 50 * 3600, 32  # log-probabilities are kept in 2 bytes each
PAGES_BYTES = 2e6  # transcripts, confusions and scores of an hour of speech
BASIS = (
    "GPU hours: predicted for {device}, not measured, from the trainings' configurations; stages",
    "on CPU cores (shards, n-grams, searches with a language model) are not counted.",
    f"Disk: shards {FLAC_BYTES_PER_HOUR / 1e6:.0f} MB an hour of audio (as `hours` says it); a",
    f"checkpoint {ADAM_BYTES} bytes a parameter, loop.keep_last of them and the best; evaluations",
    "by the hours of their shards. Texts and n-grams: not known before they are made.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a stage needs; None: not known."""

    gpu_hours: float = 0.0
    days: float = 0.0
    disk: float | None = None  # bytes
    placed: str = ""


def costs(recipe: Recipe, cluster: ClusterConfig) -> dict[str, Cost]:
    """What each stage needs, predicted."""
    known: dict[tuple[object, ...], Cost] = {}
    heard: set[tuple[str, ...]] = set()  # models and shards whose log-probabilities are counted
    out: dict[str, Cost] = {}
    for name, stage in recipe.stages.items():
        if stage.is_training:
            # Seeds cost the same
            key = (stage.config, stage.nodes, *(o for o in stage.overrides if _costs(o)))
            if key not in known:
                known[key] = _training(stage, cluster)
            out[name] = known[key]
        else:
            out[name] = Cost(disk=_disk(recipe, stage, heard))
    return out


def _costs(override: str) -> bool:
    return not override.startswith(("seed=", "pretrained=", "data.train=", "data.valid="))


def _training(stage: Stage, cluster: ClusterConfig) -> Cost:
    config, nodes, here = placed(stage, cluster)
    count = int(nodes.split("-")[-1])
    plan = make_plan(config, count, here.num_tasks_per_node, here.device())
    seconds = plan.prediction.step_seconds * config.loop.max_steps
    kept = config.loop.keep_last + 1
    kept += config.loop.max_steps // config.loop.keep_every if config.loop.keep_every else 0
    devices = f"{plan.num_processes} {'GPUs' if here.gpus_per_node else 'processes'}"
    return Cost(
        gpu_hours=seconds * plan.num_processes / 3600 if here.gpus_per_node else 0.0,
        days=seconds / 86_400,
        disk=kept * ADAM_BYTES * plan.prediction.num_parameters,
        placed=f"{devices} on {nodes} node{'' if nodes == '1' else 's'}",
    )


def _disk(recipe: Recipe, stage: Stage, heard: set[tuple[str, ...]]) -> float | None:
    if stage.kind == "shards":
        return None if stage.hours is None else stage.hours * FLAC_BYTES_PER_HOUR
    if stage.kind in ("evaluate", "tune"):
        needed = [recipe.stages[need] for need in stage.needs if need in recipe.stages]
        hours = sum(other.hours or 0.0 for other in needed)
        of = tuple(o.name for o in needed if o.kind in ("finetune", "shards"))
        kept = 0 if of in heard else FRAMES_PER_HOUR * SYMBOLS * 2
        heard.add(of)
        return hours * (PAGES_BYTES + kept)
    return 0.0 if stage.kind == "table" else None


def lines(
    recipe: Recipe, cluster: ClusterConfig, found: Mapping[str, State], missing: Iterable[str]
) -> Iterator[str]:
    """The dry run: every stage with its commands, then a line for each group, then the sums."""
    cost = costs(recipe, cluster)
    yield f"recipe  {recipe.name} ({recipe.path})"
    yield f"folder  {recipe.folder}"
    for name, path in recipe.corpora.items():
        yield f"corpus  {name}: {path or 'none'}{_there(path)}"
    for name, path in recipe.given.items():
        yield f"given   {name}: {path}"
    yield "\n# the stages, each after what it needs"
    for name, stage in recipe.stages.items():
        yield f"{name}  [{found[name].name}]" + (
            f"  needs {' '.join(stage.needs)}" if stage.needs and stage.kind != "table" else ""
        )
        yield from (f"    {_shown(command)}" for command in stage.commands)
    yield f"\n# in groups\n{'stages':<34}{'number':>6}{'GPU hours':>12}{'disk':>10}  each"
    for group, stages in _groups(recipe).items():
        costed = [cost[s.name] for s in stages]
        yield (
            f"{group:<34}{len(stages):>6}{_hours(sum(c.gpu_hours for c in costed)):>12}"
            f"{_bytes([c.disk for c in costed]):>10}{_each(costed)}"
        ).rstrip()
    todo = [cost[n] for n in recipe.stages if found[n].name != "done"]
    for title, of in (("all", list(cost.values())), ("still to do", todo)):
        hours = _hours(sum(c.gpu_hours for c in of))
        yield f"{title:<34}{len(of):>6}{hours:>12}{_bytes([c.disk for c in of]):>10}"
    yield ""
    yield "\n".join(BASIS).format(device=cluster.device().name)
    for line in missing:
        yield f"note: {line}"


def _there(path: str | None) -> str:
    return "" if path is None or Path(path).exists() else " (not there)"


def _groups(recipe: Recipe) -> dict[str, list[Stage]]:
    out: dict[str, list[Stage]] = defaultdict(list)
    for stage in recipe.stages.values():
        out[stage.group].append(stage)
    return out


def _shown(command: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in command)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours else ""


def _bytes(sizes: list[float | None]) -> str:
    """Their sum; ? where one is not known."""
    size = sum(s for s in sizes if s)
    if not size:
        return "?" if None in sizes else ""
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= least:
            return f"{size / least:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"


def _each(costed: list[Cost]) -> str:
    """Where and how long: of the shortest and the longest."""
    days = sorted(c.days for c in costed)
    if not days[-1]:
        return ""
    span = _time(days[-1]) if days[0] == days[-1] else f"{_time(days[0])} to {_time(days[-1])}"
    places = list(dict.fromkeys(c.placed for c in costed))
    return f"  {span} on {', '.join(places[:2])}{', …' if len(places) > 2 else ''}"


def _time(days: float) -> str:
    return f"{days:.1f} days" if days >= 1 else f"{days * 24:.1f} h"

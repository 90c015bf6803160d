"""What became of a run: its state, progress, speed and lost time, read from the run folder alone,
while it trains and after it died, on any machine that sees the folder."""

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError, read_yaml
from w2v2dist.recipes.recipe import is_recipe
from w2v2dist.reporting.history import RECENT, STARTS, History
from w2v2dist.reporting.words import format_status, write_table
from w2v2dist.training.lock import Holder, last_holder
from w2v2dist.training.schedules import LoopConfig

Record = dict[str, Any]
LOGS = ("metrics.jsonl", "events.jsonl")
DAY_S = 86_400.0  # silent for so long: it ended, wherever it ran
START_S = 600.0  # until the first record
SKEW_S = 120.0  # between the clocks of two hosts, and for what takes longer than the last records

SLOWEST = set(
    "slowest_rank slowest_host slowest_rank_seconds median_rank_seconds world_size".split()
)


def read_status(run_dir: str | Path) -> dict[str, Any]:
    """Everything that `w2v2dist status` shows; times in seconds, audio in hours, None: not known.
    A language model's run has `tokens` in place of `audio_hours`, wav2vec-U's `utterances`.

    `state` is running, silent (on another host, which cannot be asked), finished, preempted (saved,
    to be continued), stopped (ended without saying why, or by an alarm), new, imported (a model
    that is not trained here) or unreadable, as `problem` says. `ends` says that nothing more is to
    come. Raises ConfigError where the folder holds no run.
    """
    run_dir = Path(run_dir)
    if not is_run(run_dir):
        raise ConfigError(f"{run_dir} is no run folder: it has no config.yaml")
    return status_of(History(run_dir))


def is_run(folder: Path, names: Sequence[str] = ("config.yaml", *LOGS)) -> bool:
    """Whether a folder holds a run, whole or in parts: one of the files `names`. One that nobody
    lets us look into is taken for one, and shown with that problem."""
    try:
        return any((folder / name).is_file() for name in names)
    except OSError:
        return True


def find_runs(folder: Path, depth: int = 3, seen: set[Path] | None = None) -> list[Path]:
    """The run folders up to `depth` levels under a folder, in the order of their names; of what has
    a config.yaml alone those that a training or an import has made. A run's own are left out, and
    links to what was `seen`, by its real path."""
    seen = {folder.resolve()} if seen is None else seen
    try:
        inside = [p for p in folder.iterdir() if os.path.isdir(p) and not p.name.startswith(".")]
    except OSError:  # gone, or not ours to read
        return []
    out: list[Path] = []
    for path in sorted(inside, key=lambda p: (p.is_symlink(), p.name)):
        if (real := path.resolve()) in seen:
            continue
        seen.add(real)
        if _is_made(path):
            out.append(path)
        elif depth > 1:
            out += find_runs(path, depth - 1, seen)
    return sorted(out)


def _is_made(folder: Path) -> bool:
    try:
        made = any((folder / name).exists() for name in (*LOGS, "lock", "checkpoints"))
    except OSError:
        return True
    return made and is_run(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What a run folder has beside its logs; nothing where it cannot be read."""

    problem: str | None
    config: dict[str, Any] = field(default_factory=dict)
    holder: Holder = field(default_factory=lambda: Holder("", None))
    age: float | None = None
    saved: Sequence[int] = ()
    best: int | None = None
    num_stalled: int = 0


def _read(history: History, now: float) -> _Files:
    """Read the logs on, and the rest. Raises OSError."""
    history.update()
    run_dir = history.run_dir
    config, problem = _config(run_dir)
    best = run_dir / "checkpoints" / "best"
    return _Files(
        problem=problem,
        config=config,
        holder=last_holder(run_dir),
        age=_age(history, now),
        saved=[_step_of(folder) for folder in run_dir.glob("checkpoints/step_*")],
        best=_step_of(best.resolve()) if best.exists() else None,
        num_stalled=len(_stalled(run_dir, history.starts)),
    )


def status_of(history: History) -> dict[str, Any]:
    """Read on and say the same as `read_status`; of a run that cannot be read, what was read of it
    before."""
    now = time.time()
    try:
        files = _read(history, now)
        imported = not history.num_read and bool(files.config) and "loop" not in files.config
        state = "imported" if imported else _state(history, files.holder, files.age)
    except OSError as error:
        said = str(error).replace(f"{history.run_dir}/", "")
        files, state = _Files(problem=said), "unreadable"
    config, holder, age = files.config, files.holder, files.age
    unit, training = history.unit, history.recent
    recent = training[-RECENT:]
    seconds = max(sum(r["seconds"] for r in recent), 1e-9)
    per_step = _seconds_per_step(training)
    step, max_steps = history.replay.step, _max_steps(config)
    sizes = [e.get("world_size", e.get("new_world_size")) for e in history.starts]
    host = holder.host or (str(recent[-1].get("slowest_host", "")) if recent else "")
    return {
        "run": str(history.run_dir),
        "task": config.get("task"),
        "state": state,
        "ends": state in ("finished", "imported") or _stopped_by_alarm(history),
        "process": holder.text if holder.alive else None,
        "host": host or None,
        "seconds_silent": age,
        "stale": age is not None and age > _patience(history),
        "problem": files.problem,
        "step": step,
        "max_steps": max_steps,
        "seconds_per_step": per_step,
        "seconds_left": None if not (per_step and max_steps) else (max_steps - step) * per_step,
        unit: sum(history.replay.values),
        f"{unit}_per_second": sum(r.get(unit) or 0.0 for r in recent) / seconds,
        "data_wait": sum(r.get("data_wait_seconds") or 0.0 for r in recent) / seconds,
        "slowest_rank": _slowest_rank(recent),
        "attempts": len(history.starts),
        "world_sizes": [size for size, _ in itertools.groupby(sizes)],
        "checkpoint_step": max(files.saved, default=None),
        "num_checkpoints": len(files.saved),
        "best_step": files.best,
        "saving_seconds": history.saving_seconds,
        "restart_seconds": history.restart_seconds,
        "repeated_steps": history.replay.repeated,
        "skipped_utterances": history.num_skipped,
        "alarms": history.alarms,
        "stalled_processes": files.num_stalled,
        "last_sign_of_life": history.last_sign,
        "metrics": history.metrics,
        "chance_bits": _chance_bits(config),
        "last_events": list(history.last_events),
    }


def _config(run_dir: Path) -> tuple[dict[str, Any], str | None]:
    """A run's configuration; {} and why where there is none that can be read."""
    if not (run_dir / "config.yaml").exists():
        return {}, "there is no config.yaml"
    try:
        config = read_yaml(run_dir / "config.yaml")
    except (ValueError, OSError) as error:
        return {}, f"config.yaml cannot be read: {str(error).splitlines()[0]}"
    return config, None


def _max_steps(config: dict[str, Any]) -> int | None:
    loop = config.get("loop", {}) if config else None
    try:
        return int(loop.get("max_steps", LoopConfig().max_steps))  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def _chance_bits(config: dict[str, Any]) -> float | None:
    """The contrastive loss of a model that guesses; None of another task or a damaged file."""
    model = config.get("model") or {}
    if config.get("task") != "pretrain" or not isinstance(model, dict):
        return None
    count = model.get("num_distractors", 100)
    return math.log2(1 + count) if isinstance(count, int) and count > 0 else None


def _step_of(folder: Path) -> int:
    digits = folder.name.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def _age(history: History, now: float) -> float | None:
    """Seconds since the last sign of life; of older logs without times, as the files say."""
    if history.last_sign is not None:
        return max(0.0, now - history.last_sign)  # another host's clock may be ahead
    files = [p for name in LOGS if (p := history.run_dir / name).exists()]
    return max(0.0, now - max(p.stat().st_mtime for p in files)) if files else None


def _patience(history: History) -> float:
    """After how many seconds without a sign a running one is called silent."""
    times = [r["time"] for r in history.recent if "time" in r]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return SKEW_S + 5 * max(gaps) if gaps else START_S


def _state(history: History, holder: Holder, age: float | None) -> str:
    end = _end([history.end] if history.end else [])
    if end == "finished" or _stopped_by_alarm(history):
        return end  # the process may still be closing its files
    if holder.alive:
        return "running"
    if holder.alive is False or end in ("new", "preempted") or age is None:
        return end
    if age <= _patience(history):
        return "running"
    return "silent" if holder.text and age < DAY_S else end


def _stopped_by_alarm(history: History) -> bool:
    return history.end is not None and history.end["event"] == "alarm"


def _end(events: list[Record]) -> str:
    """The state of a run that no process holds."""
    known = dict.fromkeys((*STARTS, "alarm"), "stopped")
    known |= {name: name for name in ("finished", "preempted")}
    return next((known[e["event"]] for e in reversed(events) if e["event"] in known), "new")


def _slowest_rank(recent: list[Record]) -> Record | None:
    """The process that was the slowest most often, and by how much then; None: unknown or alone."""
    said = [r for r in recent if r.keys() >= SLOWEST and r["world_size"] > 1]
    said = [r for r in said if r["world_size"] == said[-1]["world_size"]]
    if not said:
        return None
    rank, host = statistics.mode((r["slowest_rank"], r["slowest_host"]) for r in said)
    mine = [r for r in said if (r["slowest_rank"], r["slowest_host"]) == (rank, host)]
    median = sum(r["median_rank_seconds"] for r in mine)
    ratio = sum(r["slowest_rank_seconds"] for r in mine) / max(median, 1e-9)
    return {"rank": rank, "host": host, "ratio": ratio, "count": len(mine), "of": len(said)}


def _stalled(run_dir: Path, starts: list[Record]) -> list[Path]:
    """What the watchdogs of the last attempt wrote."""
    since = starts[-1].get("time", 0.0) if starts else 0.0
    stats = {path: path.stat() for path in run_dir.glob("logs/stacks-*.txt")}
    return [p for p, stat in stats.items() if stat.st_size and stat.st_mtime >= since]


def _seconds_per_step(training: list[Record]) -> float | None:
    """Median over the last logged intervals that follow one another."""
    pairs = itertools.pairwise(training[-RECENT - 1 :])
    steps = [r["seconds"] / (r["step"] - a["step"]) for a, r in pairs if r["step"] > a["step"]]
    if not steps and training:
        steps = [training[0]["seconds"] / max(1, training[0]["step"])]
    return statistics.median(steps) if steps else None


def as_json(value: Any) -> str:
    """One line of JSON that every reader parses: NaN and infinity are null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [*map(_finite, value)] if isinstance(value, (list, tuple)) else value


def read_all(path: Path) -> list[dict[str, Any]]:
    """The status of each run under a folder. Raises ConfigError where there is none."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder: give a run folder, or one that has runs in it")
    if not (runs := find_runs(path)):
        raise ConfigError(
            f"{path} is no run folder: it has no config.yaml, and no run in the folders up to "
            "three levels under it"
        )
    return [status_of(History(run)) for run in runs]


def interval(text: str) -> float:
    """The argument of --interval. Raises ValueError."""
    if not 0.1 <= (seconds := float(text)) <= 3600:
        raise argparse.ArgumentTypeError(f"is {text} but must be from 0.1 to 3600 seconds")
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist status` takes."""
    add = parser.add_argument
    where = "run folder, a folder with runs in it (three levels at most), or a recipe or its folder"
    add("run", type=Path, help=where)
    add("--follow", action="store_true", help="show what changes, until the run has finished")
    rate = "of --follow, in seconds (default: 2)"
    add("--interval", type=interval, default=2.0, metavar="S", help=rate)
    add("--json", action="store_true", help="for scripts; with --follow, a line at each change")


def run(args: argparse.Namespace) -> int:
    """Print state, progress, speed and lost time of a run that trains, ended or died, or a line for
    each run in a folder; of a recipe where each of its stages is.

    example:
      w2v2dist status runs/base_ls960
      w2v2dist status runs --follow
      w2v2dist status configs/recipes/tiny.yaml
    """
    if is_recipe(args.run):
        from w2v2dist.reporting.recipe_status import show  # it needs what trains

        return show(args.run, args.interval, follow=args.follow, json_lines=args.json)
    if args.follow:
        from w2v2dist.reporting.follow import follow

        return follow(args.run, args.interval, json_lines=args.json)
    if is_run(args.run):
        status = read_status(args.run)
        print(as_json(status) if args.json else format_status(status))
        return 0
    found: Sequence[dict[str, Any]] = read_all(args.run)
    if args.json:
        print(as_json(found))
    else:
        write_table(args.run, found)
    return 0

"""What became of a run: its state, progress, speed and lost time, read from the run folder alone.

Works while the run trains and after it died, on any machine that sees the folder and its locks.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError, read_yaml
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training import run_folder
from w2v2dist.training.schedules import LoopConfig

RECENT = 10  # logged intervals that speeds are averaged over
METRICS = ("loss", "contrastive_loss", "accuracy", "code_perplexity")
VALID = ("valid/contrastive_loss", "valid/wer")


def read_status(run_dir: str | Path) -> dict[str, Any]:
    """Everything that `w2v2dist status` shows; times in seconds, audio in hours, None: not known.

    `state` is running, finished, preempted (saved, to be continued), stopped (ended without saying
    why) or new. Raises ConfigError where the folder holds no run.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir} is no run folder: it has no config.yaml")
    records = read_jsonl(run_dir / "metrics.jsonl")
    events = read_jsonl(run_dir / "events.jsonl")
    training = [r for r in records if "seconds" in r]
    starts = run_folder.starts(events)
    sizes = [e.get("world_size", e.get("new_world_size")) for e in starts]
    recent = training[-RECENT:]
    seconds = sum(r["seconds"] for r in recent)
    per_step = _seconds_per_step(training)
    kept, step, repeated = _replay(training, starts)
    loop = read_yaml(run_dir / "config.yaml").get("loop", {})  # an imported model's has none
    max_steps = int(loop.get("max_steps", LoopConfig().max_steps))
    saved = [int(p.name.removeprefix("step_")) for p in run_dir.glob("checkpoints/step_*")]
    held_by = run_folder.holder(run_dir)
    return {
        "state": "running" if held_by else _end(events),
        "process": held_by or None,
        "step": step,
        "max_steps": max_steps,
        "seconds_per_step": per_step,
        "seconds_left": None if per_step is None else (max_steps - step) * per_step,
        "audio_hours": sum(r["audio_hours"] for r in kept),
        "audio_hours_per_second": sum(r["audio_hours"] for r in recent) / max(seconds, 1e-9),
        "data_wait": sum(r["data_wait_seconds"] for r in recent) / max(seconds, 1e-9),
        "slowest_rank": _slowest_rank(recent),
        "attempts": len(starts),
        "world_sizes": [size for size, _ in itertools.groupby(sizes)],
        "checkpoint_step": max(saved, default=None),
        "saving_seconds": sum(
            e.get("pause_seconds", e["seconds"]) for e in events if e["event"] == "saved"
        ),
        # What the job's script notes after a failure is no sign of life
        "restart_seconds": _restart_seconds([*records, *(e for e in events if "job" not in e)]),
        "repeated_steps": repeated,
        "skipped_utterances": max(
            (e["total"] for e in events if e["event"] == "sample_skipped"), default=0
        ),
        "alarms": [e for e in events if e["event"] == "alarm"],
        "stalled_processes": len(_stalled(run_dir, starts)),
        "last_sign_of_life": max(
            (r["time"] for r in (*records, *events) if "time" in r), default=None
        ),
        "metrics": {k: r[k] for r in records for k in (*METRICS, *VALID) if k in r},
    }


def _slowest_rank(recent: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The process that most often was the slowest, and by how much then; None where one is alone
    or older logs do not say."""
    said = [r for r in recent if "slowest_rank" in r and r["world_size"] > 1]
    said = [r for r in said if r["world_size"] == said[-1]["world_size"]]
    if not said:
        return None
    places = Counter((r["slowest_rank"], r["slowest_host"]) for r in said)
    (rank, host), count = places.most_common(1)[0]
    mine = [r for r in said if (r["slowest_rank"], r["slowest_host"]) == (rank, host)]
    median = sum(r["median_rank_seconds"] for r in mine)
    ratio = sum(r["slowest_rank_seconds"] for r in mine) / max(median, 1e-9)
    return {"rank": rank, "host": host, "ratio": ratio, "count": count, "of": len(said)}


def _stalled(run_dir: Path, starts: list[dict[str, Any]]) -> list[Path]:
    """What the watchdogs of the last attempt wrote."""
    since = starts[-1]["time"] if starts else 0.0
    stats = {path: path.stat() for path in run_dir.glob("logs/stacks-*.txt")}
    return [p for p, stat in stats.items() if stat.st_size and stat.st_mtime >= since]


def _end(events: list[dict[str, Any]]) -> str:
    """The state of a run that no process holds."""
    known = {"start": "stopped", "resumed": "stopped", "finished": "finished"}
    known["preempted"] = "preempted"
    states = [known[e["event"]] for e in events if e["event"] in known]
    return states[-1] if states else "new"


def _seconds_per_step(training: list[dict[str, Any]]) -> float | None:
    """Median over the last logged intervals that follow one another."""
    pairs = itertools.pairwise(training[-RECENT - 1 :])
    steps = [r["seconds"] / (r["step"] - a["step"]) for a, r in pairs if r["step"] > a["step"]]
    if not steps and training:
        steps = [training[0]["seconds"] / training[0]["step"]]
    return statistics.median(steps) if steps else None


def _replay(
    training: list[dict[str, Any]], starts: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], int, int]:
    """The records of steps that still count, the last step, and how many steps were lost because
    the run was resumed from before them."""
    kept: dict[int, dict[str, Any]] = {}
    step = repeated = 0
    for item in sorted([*training, *starts], key=lambda r: float(r.get("time", 0))):
        if "event" not in item:
            step = int(item["step"])
            kept[step] = item
            continue
        step = int(item.get("step", 0))
        lost = [s for s, r in kept.items() if s > step and "time" in r]  # older logs had no time
        repeated += max(lost, default=step) - step
        kept = {s: r for s, r in kept.items() if s not in lost}
    return list(kept.values()), step, repeated


def _restart_seconds(entries: list[dict[str, Any]]) -> float:
    """From the last sign of life before each resumption to the resumption."""
    times = [r["time"] for r in entries if "time" in r]
    lost = 0.0
    for resumed in (e for e in entries if e.get("event") == "resumed"):
        before = [t for t in times if t < resumed["time"]]
        lost += resumed["time"] - max(before, default=resumed["time"])
    return lost


def format_status(status: dict[str, Any]) -> str:
    """The status as lines of text for a person."""

    def duration(seconds: float | None) -> str:
        return "not known" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))

    s = status
    share = 100 * s["step"] / s["max_steps"]
    lines = {"state": s["state"] + (f" ({s['process']})" if s["process"] else "")}
    lines["step"] = f"{s['step']:,} of {s['max_steps']:,} ({share:.1f} %)"
    if s["seconds_per_step"] is not None:
        lines["speed"] = (
            f"{s['seconds_per_step']:.3g} s a step, {s['audio_hours_per_second']:.3g} h of audio a "
            f"second, {100 * s['data_wait']:.1f} % of the time waiting for data"
        )
        if slow := s["slowest_rank"]:
            lines["slowest"] = (
                f"rank {slow['rank']} on {slow['host']}: {slow['ratio']:.2f} × the median, in "
                f"{slow['count']} of the last {slow['of']} records (waiting for data + forward)"
            )
        lines["trained on"] = f"{s['audio_hours']:,.2f} h of audio"
    if s["state"] not in ("finished", "new"):
        lines["left"] = f"{duration(s['seconds_left'])} at this speed"
        if s["state"] == "running" and s["seconds_left"] is not None:
            lines["left"] += f", until {time.ctime(time.time() + s['seconds_left'])}"
    sizes = " → ".join(str(size) for size in s["world_sizes"])
    lines["attempts"] = f"{s['attempts']}, on {sizes} processes" if sizes else "none"
    lines["lost"] = (
        f"{duration(s['restart_seconds'])} to restarts, {s['repeated_steps']} steps trained again, "
        f"{duration(s['saving_seconds'])} to saving"
    )
    newest = s["checkpoint_step"]
    lines["checkpoint"] = "none" if newest is None else f"step {newest:,}"
    lines["skipped"] = f"{s['skipped_utterances']} utterances"
    if s["alarms"]:
        shown = (f"{e['alarm']} at step {e['step']:,} ({e['action']})" for e in s["alarms"][-3:])
        lines["alarms"] = f"{len(s['alarms'])}; last: " + ", ".join(shown)
    if s["stalled_processes"]:
        lines["stalled"] = f"{s['stalled_processes']} processes (logs/stacks-*.txt)"
    if s["last_sign_of_life"] is not None:
        ago = duration(time.time() - s["last_sign_of_life"])
        lines["last sign"] = f"{time.ctime(s['last_sign_of_life'])} ({ago} ago)"
    lines["metrics"] = "  ".join(f"{k} {v:.4g}" for k, v in s["metrics"].items() if v is not None)
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist status` takes."""
    parser.add_argument("run", help="run folder")


def run(args: argparse.Namespace) -> None:
    """Print state, progress, speed and lost time of a run that trains, ended or died.

    example:
      w2v2dist status runs/base_ls960
    """
    print(format_status(read_status(args.run)))

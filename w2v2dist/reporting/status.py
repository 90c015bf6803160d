"""What became of a run: its state, progress, speed and lost time, read from the run folder alone,
while it trains and after it died, on any machine that sees the folder and its locks."""

import argparse
import datetime
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError, read_yaml
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training import run_folder
from w2v2dist.training.schedules import LoopConfig

Record = dict[str, Any]
RECENT = 10  # logged intervals that speeds are averaged over
METRICS = (
    "loss contrastive_loss accuracy code_perplexity perplexity valid/contrastive_loss valid/wer "
    "valid/per valid/cer valid/perplexity"
).split()


def read_status(run_dir: str | Path) -> dict[str, Any]:
    """Everything that `w2v2dist status` shows; times in seconds, audio in hours, None: not known.
    A language model's run has `tokens` in place of `audio_hours`.

    `state` is running, finished, preempted (saved, to be continued), stopped (ended without saying
    why) or new. Raises ConfigError where the folder holds no run.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir} is no run folder: it has no config.yaml")
    records, events = (read_jsonl(run_dir / f"{name}.jsonl") for name in ("metrics", "events"))
    training = [r for r in records if "seconds" in r]
    starts = run_folder.starts(events)
    sizes = [e.get("world_size", e.get("new_world_size")) for e in starts]
    unit = "tokens" if any("tokens" in r for r in training) else "audio_hours"
    recent = training[-RECENT:]
    seconds = max(sum(r["seconds"] for r in recent), 1e-9)
    per_step = _seconds_per_step(training)
    kept, step, repeated = _replay(training, starts)
    loop = read_yaml(run_dir / "config.yaml").get("loop", {})  # an imported model's has none
    max_steps = int(loop.get("max_steps", LoopConfig().max_steps))
    saves = [e for e in events if e["event"] == "saved"]
    skipped = [e["total"] for e in events if e["event"] == "sample_skipped"]
    signs = [r["time"] for r in (*records, *events) if "time" in r]
    saved = [int(p.name.removeprefix("step_")) for p in run_dir.glob("checkpoints/step_*")]
    held_by = run_folder.holder(run_dir)
    return {
        "state": "running" if held_by else _end(events),
        "process": held_by or None,
        "step": step,
        "max_steps": max_steps,
        "seconds_per_step": per_step,
        "seconds_left": None if per_step is None else (max_steps - step) * per_step,
        unit: sum(r[unit] for r in kept),
        f"{unit}_per_second": sum(r[unit] for r in recent) / seconds,
        "data_wait": sum(r["data_wait_seconds"] for r in recent) / seconds,
        "slowest_rank": _slowest_rank(recent),
        "attempts": len(starts),
        "world_sizes": [size for size, _ in itertools.groupby(sizes)],
        "checkpoint_step": max(saved, default=None),
        "saving_seconds": sum(e.get("pause_seconds", e["seconds"]) for e in saves),
        # What the job's script notes after a failure is no sign of life
        "restart_seconds": _restart_seconds([*records, *(e for e in events if "job" not in e)]),
        "repeated_steps": repeated,
        "skipped_utterances": max(skipped, default=0),
        "alarms": [e for e in events if e["event"] == "alarm"],
        "stalled_processes": len(_stalled(run_dir, starts)),
        "last_sign_of_life": max(signs, default=None),
        "metrics": {k: r[k] for r in records for k in METRICS if k in r},
    }


def _slowest_rank(recent: list[Record]) -> Record | None:
    """The process that was the slowest most often, and by how much then; None: unknown or alone."""
    said = [r for r in recent if "slowest_rank" in r and r["world_size"] > 1]
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
    since = starts[-1]["time"] if starts else 0.0
    stats = {path: path.stat() for path in run_dir.glob("logs/stacks-*.txt")}
    return [p for p, stat in stats.items() if stat.st_size and stat.st_mtime >= since]


def _end(events: list[Record]) -> str:
    """The state of a run that no process holds."""
    known = {"start": "stopped", "resumed": "stopped"}
    known |= {name: name for name in ("finished", "preempted")}
    return next((known[e["event"]] for e in reversed(events) if e["event"] in known), "new")


def _seconds_per_step(training: list[Record]) -> float | None:
    """Median over the last logged intervals that follow one another."""
    pairs = itertools.pairwise(training[-RECENT - 1 :])
    steps = [r["seconds"] / (r["step"] - a["step"]) for a, r in pairs if r["step"] > a["step"]]
    if not steps and training:
        steps = [training[0]["seconds"] / training[0]["step"]]
    return statistics.median(steps) if steps else None


def _replay(training: list[Record], starts: list[Record]) -> tuple[list[Record], int, int]:
    """The records of steps that count, the last step, and how many a resumption had to repeat."""
    kept: dict[int, Record] = {}
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


def _restart_seconds(entries: list[Record]) -> float:
    """From the last sign of life before each resumption to the resumption."""
    times: list[float] = [r["time"] for r in entries if "time" in r]
    resumed: list[float] = [e["time"] for e in entries if e.get("event") == "resumed"]
    return sum(now - max((t for t in times if t < now), default=now) for now in resumed)


def format_status(s: Record) -> str:
    """The status as lines of text for a person."""

    def duration(seconds: float | None) -> str:
        return "not known" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))

    lines = {"state": s["state"] + (f" ({s['process']})" if s["process"] else "")}
    lines["step"] = (
        f"{s['step']:,} of {s['max_steps']:,} ({100 * s['step'] / s['max_steps']:.1f} %)"
    )
    if s["seconds_per_step"] is not None:
        if "tokens" in s:
            amount, rate = f"{s['tokens']:,.0f} tokens", f"{s['tokens_per_second']:.4g} tokens"
        else:
            amount = f"{s['audio_hours']:,.2f} h of audio"
            rate = f"{s['audio_hours_per_second']:.3g} h of audio"
        lines["speed"] = (
            f"{s['seconds_per_step']:.3g} s a step, {rate} a second, "
            f"{100 * s['data_wait']:.1f} % of the time waiting for data"
        )
        if slow := s["slowest_rank"]:
            lines["slowest"] = (
                f"rank {slow['rank']} on {slow['host']}: {slow['ratio']:.2f} × the median, in "
                f"{slow['count']} of the last {slow['of']} records (waiting for data + forward)"
            )
        lines["trained on"] = amount
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

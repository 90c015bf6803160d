"""The status of a run in words: as lines, in a line, and as a table of runs."""

import datetime
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v2dist.reporting.tail import COUNTED

Status = dict[str, Any]
COLOURS = {"running": "green", "finished": "cyan", "preempted": "yellow", "silent": "magenta"}
COLOURS |= {"stopped": "red", "unreadable": "red"}
HEAD = ("run", "state", "step", "loss or errors", "speed", "waits", "left", "last sign")


def duration(seconds: float | None) -> str:
    """As 1 day, 2:03:04."""
    return "not known" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def short(seconds: float) -> str:
    """In the largest unit of which there are two: 12 s, 3 min, 30 h, 4 days."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def state(s: Status) -> str:
    """The state, with who trains and how that is known."""
    ago = short(s["seconds_silent"] or 0.0)
    if s["state"] == "silent":
        host = s["host"] or "another host"
        return f"silent for {ago} (last on {host}; from here nobody can tell whether it lives)"
    if s["state"] != "running":
        return str(s["state"])
    if not s["process"]:
        return f"running (on {s['host'] or 'another host'}, seen {ago} ago)"
    return f"running ({s['process']})" + (f", silent for {ago}" if s["stale"] else "")


def steps(s: Status) -> str:
    """The step, of how many."""
    if not s["max_steps"]:
        return f"{s['step']:,}"
    return f"{s['step']:,} of {s['max_steps']:,} ({100 * s['step'] / s['max_steps']:.1f} %)"


def measure(s: Status) -> str:
    """What a person looks at first: errors on validation, or the loss; or why there are none."""
    if s["state"] == "unreadable":
        return str(s["problem"])
    values = s["metrics"]
    if (score := values.get("valid/weighted_lm_ppl")) is not None:
        return f"score {score:.1f}"
    for key in ("valid/wer", "valid/per", "valid/cer"):
        if values.get(key) is not None:
            return f"{100 * values[key]:.1f} % {key.removeprefix('valid/')}"
    return loss(s)


def loss(s: Status) -> str:
    """The loss of training; a language model's perplexity."""
    forms = {"contrastive_loss": "{:.3f} bits", "perplexity": "perplexity {:.1f}", "loss": "{:.4g}"}
    for key, form in forms.items():
        if key in s["metrics"]:
            value = s["metrics"][key]
            return "not finite" if value is None else form.format(value)
    return "not known"


def counted(s: Status) -> str | None:
    """What its progress is counted in; None: audio."""
    return next((unit for unit in COUNTED if unit in s), None)


def speed(s: Status) -> str:
    """Audio, tokens or utterances a second, over the last records."""
    if s["seconds_per_step"] is None:
        return "not known"
    if unit := counted(s):
        return f"{s[f'{unit}_per_second']:,.0f} {unit}/s"
    times = 3600 * s["audio_hours_per_second"]
    return f"{times:,.0f} × real time" if times >= 10 else f"{times:.2g} × real time"


def left(s: Status) -> str:
    """The time left at this speed; "" where nothing is."""
    if s["state"] in ("finished", "new", "imported", "unreadable"):
        return ""
    return duration(s["seconds_left"])


def slowest(s: Status) -> str | None:
    """The slowest process; None where there is one alone."""
    if not (slow := s["slowest_rank"]):
        return None
    return (
        f"rank {slow['rank']} on {slow['host']}: {slow['ratio']:.2f} × the median, in "
        f"{slow['count']} of the last {slow['of']} records (waiting for data + forward)"
    )


def alarms(s: Status) -> str | None:
    """How many, and the last ones."""
    if not s["alarms"]:
        return None
    shown = (
        f"{e.get('alarm')} at step {e.get('step', 0):,} ({e.get('action')})"
        for e in s["alarms"][-3:]
    )
    return f"{len(s['alarms'])}; last: " + ", ".join(shown)


def checkpoints(s: Status) -> str:
    """The newest and the best."""
    if s["checkpoint_step"] is None:
        return "none"
    best = "" if s["best_step"] is None else f", best step {s['best_step']:,}"
    return f"step {s['checkpoint_step']:,}{best} ({s['num_checkpoints']} kept)"


def attempts(s: Status) -> str:
    """How many, and on how many processes."""
    sizes = " → ".join(str(size) for size in s["world_sizes"])
    return f"{s['attempts']}, on {sizes} processes" if sizes else "none"


def format_status(s: Status) -> str:
    """The status as lines of text for a person."""
    lines = {"state": state(s), "step": steps(s)}
    if s["problem"]:
        lines["problem"] = s["problem"]
    if s["seconds_per_step"] is not None:
        if unit := counted(s):
            amount, rate = f"{s[unit]:,.0f} {unit}", f"{s[f'{unit}_per_second']:.4g} {unit}"
        else:
            amount = f"{s['audio_hours']:,.2f} h of audio"
            rate = f"{s['audio_hours_per_second']:.3g} h of audio"
        lines["speed"] = (
            f"{s['seconds_per_step']:.3g} s a step, {rate} a second, "
            f"{100 * s['data_wait']:.1f} % of the time waiting for data"
        )
        if said := slowest(s):
            lines["slowest"] = said
        lines["trained on"] = amount
    if left(s):
        lines["left"] = f"{left(s)} at this speed"
        if s["state"] == "running" and s["seconds_left"] is not None:
            lines["left"] += f", until {time.ctime(time.time() + s['seconds_left'])}"
    lines["attempts"] = attempts(s)
    lines["lost"] = (
        f"{duration(s['restart_seconds'])} to restarts, {s['repeated_steps']} steps trained again, "
        f"{duration(s['saving_seconds'])} to saving"
    )
    lines["checkpoint"] = checkpoints(s)
    lines["skipped"] = f"{s['skipped_utterances']} utterances"
    if said := alarms(s):
        lines["alarms"] = said
    if s["stalled_processes"]:
        lines["stalled"] = f"{s['stalled_processes']} processes (logs/stacks-*.txt)"
    if s["last_sign_of_life"] is not None:
        ago = duration(time.time() - s["last_sign_of_life"])
        lines["last sign"] = f"{time.ctime(s['last_sign_of_life'])} ({ago} ago)"
    lines["metrics"] = "  ".join(f"{k} {v:.4g}" for k, v in s["metrics"].items() if v is not None)
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def line(s: Status) -> str:
    """The status in one line."""
    parts = [state(s), f"step {steps(s)}", measure(s), speed(s)]
    parts.append(f"{100 * s['data_wait']:.1f} % waiting for data")
    return "  ".join([*parts, *([f"left {left(s)}"] if left(s) else [])])


def event(record: Status) -> str:
    """An event of the log in one line."""
    when = record.get("time")
    clock = "" if when is None else time.strftime("%d %b %H:%M:%S", time.localtime(when))
    rest = (f"{k} {_shown(v)}" for k, v in record.items() if k not in ("event", "time"))
    return f"{clock}  {record['event']}  " + ", ".join(rest)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def name(folder: Path, s: Status) -> str:
    """A run's name under a folder."""
    return os.path.relpath(s["run"], folder)


def table(folder: Path, found: Sequence[Status]) -> Table:
    """A line for each run."""
    out = Table(*HEAD, box=None, pad_edge=False, header_style="bold")
    for column in out.columns:
        column.no_wrap = True
    out.columns[1].min_width = max((len(s["state"]) for s in found), default=0)
    for s in found:
        row = [name(folder, s), s["state"], steps(s).replace(" of ", "/"), measure(s)]
        row += [speed(s).removesuffix(" real time"), f"{100 * s['data_wait']:.1f} %"]
        row.append(short(s["seconds_left"]) if left(s) and s["seconds_left"] is not None else "")
        silent = s["seconds_silent"]
        row.append("" if silent is None else f"{short(silent)} ago")
        cells = [Text(cell) for cell in row]
        cells[1].stylize(COLOURS.get(s["state"], ""))
        if s["stale"] and s["state"] == "running":
            cells[-1].stylize("magenta")
        out.add_row(*cells)
    return out


def write_table(folder: Path, found: Sequence[Status]) -> None:
    """Print it; where no terminal limits the width, whole."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    console.print(table(folder, found))

"""Where the wall time of a run went: attempts, and what of it made progress that counts."""

import datetime
import math
from dataclasses import dataclass

import numpy as np

from w2v2dist.reporting import logs
from w2v2dist.reporting.page import Html, fold, join, table, tag
from w2v2dist.reporting.runs import Run

# What an attempt's time is made of, in the order in which it is shown: name to explanation
USES = {
    "counted": "steps that count",
    "repeated": "steps trained again later",
    "saving": "saving",
    "starting": "starting up",
    "other": "validation and the rest",
    "between": "between attempts",
}
MOST_ROWS = 100


@dataclass(frozen=True, slots=True)
class Attempt:
    """Of a start: its first step, from when to when, on how many processes, and the seconds that
    went into each of USES; `lost_from` is the end of the last record that counts, where others
    follow it."""

    step: int
    begin: float
    end: float
    world_size: int | None
    seconds: dict[str, float]
    lost_from: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    """The attempts of a run, and the seconds of wall time that went into each of USES."""

    attempts: list[Attempt]
    seconds: dict[str, float]

    @property
    def wall(self) -> float:
        """From the first start to the last sign of life."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The share that went into steps that count."""
        return self.seconds["counted"] / max(self.wall, 1e-9)


def spent(run: Run) -> Spent | None:
    """Where the time went; None where the logs have no times (an older version's)."""
    signs = run.signs[np.isfinite(run.signs)]
    times = run.logged.column("time")
    if not len(signs) or not run.starts or not np.isfinite(times).any():
        return None
    spans = logs.spans(run.starts, float(signs.max()))
    ordered = np.sort(signs)
    seconds = np.nan_to_num(run.logged.column("seconds"))
    attempts = []
    for start, begin, next_begin in spans:
        inside = ordered[(ordered >= begin) & (ordered < next_begin)]
        end = float(inside[-1]) if len(inside) else begin
        if next_begin == float(signs.max()):
            end = next_begin
        rows = (times >= begin) & (times <= end)
        own, kept = rows & ~run.alive, rows & run.alive
        first = np.flatnonzero(rows)
        trained_from = float(times[first[0]] - seconds[first[0]]) if len(first) else end
        use = {
            "counted": float(seconds[kept].sum()),
            "repeated": float(seconds[own].sum()),
            "saving": _saving(run, begin, end),
            "starting": max(0.0, trained_from - begin),
        }
        use["other"] = max(0.0, end - begin - sum(use.values()))
        use["between"] = max(0.0, next_begin - end)
        last = float(times[kept].max()) if kept.any() else trained_from
        lost_from = last if own.any() else None
        step = int(start["step"]) if math.isfinite(logs.number(start.get("step"))) else 0
        size = logs.world_size(start)
        attempts.append(Attempt(step, begin, end, size, use, lost_from))
    total = {name: sum(a.seconds[name] for a in attempts) for name in USES}
    return Spent(attempts, total)


def _saving(run: Run, begin: float, end: float) -> float:
    """Seconds that training waited for checkpoints."""
    saved = [e for e in run.events if e["event"] == "saved" and begin <= logs.number(e.get("time"))]
    pauses = [
        logs.number(e.get("pause_seconds", e.get("seconds"))) for e in saved if e["time"] <= end
    ]
    return float(np.nansum(pauses))


def section(run: Run) -> Html:
    """The goodput, a bar of attempts over the wall time, and a table of them."""
    found = spent(run)
    if found is None or not found.wall:
        return tag("p", "No times to show: nothing was logged yet, or by an older version.")
    shares = [
        tag("span", tag("i", class_=f"use {name}"), f"{100 * s / found.wall:.1f} % {USES[name]}")
        for name, s in found.seconds.items()
        if s >= 0.0005 * found.wall
    ]
    stacked = [
        _bar(name, s / found.wall, f"{USES[name]}: {duration(s)}")
        for name, s in found.seconds.items()
    ]
    return join(
        [
            tag(
                "p",
                tag("b", f"{100 * found.goodput:.1f} % goodput"),
                f" of {duration(found.wall)} wall time",
                class_="lead",
            ),
            tag("div", *stacked, class_="bar"),
            tag("p", *shares, class_="keys"),
            _attempts(found),
        ]
    )


def _bar(class_: str, share: float, title: str) -> Html:
    return tag("i", class_=class_, style=f"width:{100 * share:.3f}%", title=title)


def _attempts(found: Spent) -> Html:
    """Attempts over the wall time, as high as their number of processes, and as rows."""
    begin, wall = found.attempts[0].begin, max(found.wall, 1e-9)
    largest = max((a.world_size or 1 for a in found.attempts), default=1)
    bars = []
    for attempt in found.attempts:
        left, width = (attempt.begin - begin) / wall, (attempt.end - attempt.begin) / wall
        height = 100 * (attempt.world_size or 1) / largest
        lasted = duration(attempt.end - attempt.begin)
        title = f"{_processes(attempt)}, from step {attempt.step:,}, {lasted}"
        style = f"left:{100 * left:.3f}%;width:{100 * width:.3f}%;height:{height:.1f}%"
        lost = None
        if attempt.lost_from is not None and attempt.end > attempt.begin:
            share = (attempt.end - attempt.lost_from) / (attempt.end - attempt.begin)
            lost = tag("i", class_="repeated", style=f"width:{100 * min(1.0, share):.2f}%")
        label = tag("span", attempt.world_size) if width > 0.04 and attempt.world_size else None
        bars.append(tag("div", label, lost, class_="attempt", style=style, title=title))
    rows = [
        (
            moment(a.begin),
            f"{a.step:,}",
            "?" if a.world_size is None else a.world_size,
            duration(a.end - a.begin),
            *(duration(a.seconds[name]) for name in ("counted", "repeated", "saving", "between")),
        )
        for a in found.attempts[-MOST_ROWS:]
    ]
    head = (
        "began",
        "after step",
        "processes",
        "lasted",
        "counts",
        "repeated",
        "saving",
        "then lost",
    )
    return join(
        [
            tag(
                "div",
                *bars,
                class_="attempts",
                role="img",
                aria_label="attempts over the wall time",
            ),
            tag(
                "p",
                tag("span", "0"),
                tag("span", "attempts by wall time, as high as their number of processes"),
                tag("span", duration(wall)),
                class_="axis",
            ),
            fold(f"Attempts ({len(found.attempts)})", table(head, rows, class_="numbers")),
        ]
    )


def _processes(attempt: Attempt) -> str:
    size = attempt.world_size
    return "unknown processes" if size is None else f"{size} process{'es' * (size != 1)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 4.2 s, 12 min, 3.4 h, 5.1 days."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def moment(seconds: float) -> str:
    """A point in time for a person; "" where it is none."""
    try:
        return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return ""

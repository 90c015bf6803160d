"""The live view of runs: of one with its curves and events, of several as a table."""

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from w2v2dist.reporting import words

if TYPE_CHECKING:
    from w2v2dist.reporting.follow import Watch

Status = dict[str, Any]
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = "_.-=+*%#"  # where the terminal knows no others
WIDTH = 40  # of a curve
ORDER = ("running", "silent", "preempted", "stopped", "unreadable", "new", "finished", "imported")


def sparkline(values: Sequence[float | None], width: int, blocks: str = BLOCKS) -> str:
    """Means of values along `width` characters, from the lowest to the highest."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return ""
    width = min(width, len(known))
    edges = [i * len(known) // width for i in range(width + 1)]
    means = [statistics.fmean(known[a:b]) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


def view(watch: "Watch", found: list[Status], console: Console) -> RenderableType:
    """What the screen shows now."""
    title = Text(f"{watch.path}", style="bold")
    title.append(f"   {time.strftime('%H:%M:%S')}   Ctrl-C ends this view, not a run", "dim")
    if not found:
        return Group(title, Text(), Text(watch.waiting()))
    if len(found) == 1 and found[0]["run"] == str(watch.path):
        blocks = PLAIN if console.options.ascii_only else BLOCKS
        return Group(title, Text(), _one(found[0], watch.curves[found[0]["run"]], blocks))
    found = sorted(found, key=lambda s: ORDER.index(s["state"]))
    room = max(1, console.height - 6)
    more = [Text(f"… and {len(found) - room} more")] if len(found) > room else []
    return Group(title, Text(), words.table(watch.path, found[:room]), *more)


def _one(
    s: Status, points: list[tuple[int, float | None, float | None]], blocks: str
) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()

    def row(label: str, text: str | None, style: str = "") -> None:
        if text:
            grid.add_row(label, Text(text, style=style))

    state = words.state(s)
    if s["state"] in ("preempted", "stopped") and not s["ends"]:
        state += ", waiting for it to be continued"
    row("state", state, words.COLOURS.get(s["state"], ""))
    row("problem", s["problem"], "red")
    row("step", words.steps(s))
    if s["max_steps"]:
        grid.add_row("", ProgressBar(total=s["max_steps"], completed=s["step"], width=WIDTH))
    chance = f"  (chance {s['chance_bits']:.3f})" if s["chance_bits"] else ""
    row("loss", words.loss(s) + chance)
    row("", sparkline([loss for _, loss, _ in points], WIDTH, blocks), "cyan")
    row("validation", _validation(s))
    row("speed", _speed(s))
    row("", sparkline([speed for *_, speed in points], WIDTH, blocks), "cyan")
    row("slowest", words.slowest(s))
    row("left", _left(s))
    row("checkpoint", words.checkpoints(s))
    row("attempts", words.attempts(s))
    row("alarms", words.alarms(s), "red")
    silent = s["seconds_silent"]
    row("last sign", None if silent is None else f"{words.short(silent)} ago")
    events = [Text(words.event(e), no_wrap=True, overflow="ellipsis") for e in s["last_events"]]
    return Group(grid, Text(), *events)


def _validation(s: Status) -> str:
    values = {k: v for k, v in s["metrics"].items() if k.startswith("valid/") and v is not None}
    return "  ".join(f"{k.removeprefix('valid/')} {v:.4g}" for k, v in values.items())


def _speed(s: Status) -> str | None:
    if s["seconds_per_step"] is None:
        return None
    rate = words.counted(s) or "audio_hours"
    amount = f"{s[f'{rate}_per_second']:.3g} {rate.replace('audio_hours', 'h of audio')} a second"
    real = "" if words.counted(s) else f" ({words.speed(s)})"
    wait = f"{100 * s['data_wait']:.1f} % waiting for data"
    return f"{amount}{real}, {s['seconds_per_step']:.3g} s a step, {wait}"


def _left(s: Status) -> str:
    text = words.left(s)
    if text and s["state"] == "running" and s["seconds_left"] is not None:
        text += f", until {time.ctime(time.time() + s['seconds_left'])}"
    return text

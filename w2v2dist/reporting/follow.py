"""`w2v2dist status --follow`: runs while they train, as a live view or as lines where the output is
no terminal."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from w2v2dist.reporting import words
from w2v2dist.reporting.history import History
from w2v2dist.reporting.status import as_json, find_runs, is_run, status_of
from w2v2dist.reporting.view import view

Status = dict[str, Any]
RESCAN_S = 10.0  # how often a folder is searched for new runs


class Watch:
    """One run, or all under a folder; what is there is read on at each `update`. `gone`: the one
    run was there, and is no more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gone = False
        self.curves: dict[str, list[tuple[int, float | None, float | None]]] = {}
        self._histories: dict[Path, History] = {}
        self._searched = -RESCAN_S

    def update(self) -> list[Status]:
        """The status of each run; [] while there is none. That a disk does not answer is a problem
        for now, not the end."""
        for run in self._runs():
            self._histories.setdefault(run, History(run))
        self.gone = self.path in self._histories and not is_run(self.path)
        self._histories = {run: h for run, h in self._histories.items() if is_run(run)}
        found = []
        for history in self._histories.values():
            status = status_of(history)
            self.curves[status["run"]] = history.curve.points
            found.append(status | {"num_read": history.num_read})
        return found

    def _runs(self) -> list[Path]:
        if is_run(self.path):
            return [self.path]
        if time.monotonic() - self._searched < RESCAN_S and self._histories:
            return []
        self._searched = time.monotonic()
        return find_runs(self.path)

    def waiting(self) -> str:
        """What is said while there is no run."""
        if self.gone:
            return f"{self.path} is gone: it was removed, or has another name now"
        what = "holds no run" if self.path.is_dir() else "is not there"
        return f"waiting for a run: {self.path} {what} yet"


def follow(path: Path, interval: float, *, json_lines: bool) -> int:
    """Show what changes until all runs have finished or the one is gone, or Ctrl-C. Exit status
    0."""
    watch, console = Watch(path), Console(highlight=False)
    previous = signal.signal(signal.SIGTERM, _end)  # the terminal is restored
    try:
        if console.is_terminal and not json_lines:
            _live(watch, console, interval)
        else:
            show = _json if json_lines else _Lines(watch)
            for found in _changes(watch, interval, show):
                show(found)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _live(watch: Watch, console: Console, interval: float) -> None:
    """In the alternate screen; the last state stays on the terminal."""
    found: list[Status] = []
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                found = watch.update() or found
                live.update(view(watch, found, console), refresh=True)
                if _is_over(watch, found):
                    break
                time.sleep(interval)
    finally:
        if watch.gone:
            print(watch.waiting())
        if len(found) == 1 and found[0]["run"] == str(watch.path):
            print(words.format_status(found[0]))
        elif found:
            words.write_table(watch.path, found)


def _changes(
    watch: Watch, interval: float, show: "Callable[[list[Status]], None]"
) -> Iterator[list[Status]]:
    """The runs of which something was logged or the state is another than the last time."""
    seen: dict[str, tuple[Any, ...]] = {}
    said = ""
    while True:
        found = watch.update()
        if not found and (waiting := watch.waiting()) != said and show is not _json:
            said = waiting
            print(said, flush=True)
        now = {s["run"]: (s["num_read"], s["state"], s["stale"]) for s in found}
        if changed := [s for s in found if seen.get(s["run"]) != now[s["run"]]]:
            seen |= now
            yield changed
        if _is_over(watch, found):
            return
        time.sleep(interval)


def _is_over(watch: Watch, found: list[Status]) -> bool:
    return watch.gone or (bool(found) and all(s["ends"] for s in found))


def _json(found: list[Status]) -> None:
    for status in found:
        print(as_json({k: v for k, v in status.items() if k != "num_read"}), flush=True)


class _Lines:
    """A block when a run is first seen alone, then a line at each change, and the block again when
    it has finished."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._known: dict[str, list[Status]] = {}  # run -> its last events

    def __call__(self, found: list[Status]) -> None:
        for s in found:
            alone = s["run"] == str(self._watch.path)
            name = "" if alone else f"{words.name(self._watch.path, s)}  "
            old = self._known.get(s["run"])
            self._known[s["run"]] = s["last_events"]
            if old is None and alone:
                print(words.format_status(s), flush=True)
                continue
            for event in s["last_events"]:
                if old is not None and event not in old:
                    print(f"{name}{words.event(event)}", flush=True)
            print(f"{time.strftime('%H:%M:%S')}  {name}{words.line(s)}", flush=True)
            if s["ends"] and alone:
                print(words.format_status(s), flush=True)

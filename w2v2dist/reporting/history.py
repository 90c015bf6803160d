"""What the logs of a run add up to, as far as they have been read: a run of 600,000 records is read
once in about a second, and after that only what comes."""

import re
from collections import deque
from pathlib import Path
from typing import Any

from w2v2dist.reporting.tail import COUNTED, ReplacedError, Tail, parse

Record = dict[str, Any]
RECENT = 10  # logged intervals that speeds are averaged over
METRICS = (
    "loss contrastive_loss accuracy code_perplexity perplexity valid/contrastive_loss valid/wer "
    "valid/per valid/cer valid/perplexity valid/weighted_lm_ppl"
).split()
STARTS = ("start", "resumed")
# A record of training as `Metrics` writes it, without making an object of its twenty values
QUICK = re.compile(
    rb'\{"step": (\d+),.*"(audio_hours|tokens|utterances)": ([-+.\deE]+), "seconds": '
    rb'.*"time": ([.\d]+)\}\s*\Z'
)


class Replay:
    """The steps that count: what was logged after the checkpoint that an attempt resumes is lost.
    A record's `value` is kept as it is given."""

    def __init__(self) -> None:
        self.steps: list[int] = []  # ascending
        self.values: list[Any] = []
        self.step = self.repeated = 0
        self._untimed = 0  # older logs had no time: a start cannot tell what came after it

    def record(self, step: int, value: Any, timed: bool) -> None:
        """A step was logged; again, where one that is not earlier was logged before."""
        self.step = step
        if self.steps and self.steps[-1] >= step:
            self._drop(step - 1, 0)
        self.steps.append(step)
        self.values.append(value)
        if not timed:
            self._untimed = len(self.steps)

    def start(self, step: int) -> None:
        """An attempt begins after `step`."""
        self.step = step
        last = self.steps[-1] if len(self.steps) > self._untimed else step
        self.repeated += max(0, last - step)
        self._drop(step, self._untimed)

    def _drop(self, step: int, least: int) -> None:
        while len(self.steps) > least and self.steps[-1] > step:
            self.steps.pop()
            self.values.pop()
        self._untimed = min(self._untimed, len(self.steps))


class Curve:
    """A metric and the speed over a whole run, in at most `most` points."""

    def __init__(self, most: int = 512) -> None:
        self.points: list[tuple[int, float | None, float | None]] = []  # step, loss, speed
        self._most, self._every, self._count = most, 1, 0

    def wants(self) -> bool:
        """Whether the next record is to be added; to be asked once for each."""
        self._count += 1
        return self._count % self._every == 0

    def add(self, record: Record, unit: str) -> None:
        """Add a record of training; later steps than its are forgotten."""
        step, seconds = int(record["step"]), record.get("seconds")
        while self.points and self.points[-1][0] >= step:
            self.points.pop()
        speed = record[unit] / seconds if seconds and record.get(unit) is not None else None
        self.points.append((step, record.get("contrastive_loss", record.get("loss")), speed))
        if len(self.points) > self._most:
            self.points = self.points[1::2]
            self._every *= 2


class History:
    """The logs of a run folder; `update` reads on. Times are in seconds since 1970."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._forget()

    def _forget(self) -> None:
        self._metrics, self._events = (
            Tail(self.run_dir / f"{name}.jsonl") for name in ("metrics", "events")
        )
        self.unit = "audio_hours"
        self.metrics: Record = {}  # the last of each
        self.replay, self.curve = Replay(), Curve()
        self.num_read = 0  # lines
        self.starts: list[Record] = []
        self.alarms: list[Record] = []
        self.last_events: deque[Record] = deque(maxlen=8)
        self.end: Record | None = None  # the last event that says how an attempt began or ended
        self.saving_seconds = self.restart_seconds = 0.0
        self.num_skipped = 0
        self.last_sign: float | None = None
        self._alive: float | None = None  # the last sign that the run itself gave
        self._lines: deque[bytes] = deque(maxlen=RECENT + 1)
        self.recent: list[Record] = []  # records of training, one more than intervals

    def update(self) -> bool:
        """Read what was appended; whether there was anything. Raises OSError."""
        before = self.num_read
        try:
            entries, more = [], True
            while more:  # whatever was logged before an attempt began is read with its event
                entries += self._read_records()
                entries += (events := self._read_events())
                more = any(event["event"] in STARTS for *_, event in events)
        except ReplacedError:
            self._forget()
            self.update()
            return True
        entries.sort(key=lambda entry: entry[0] or 0.0)  # stable: a record before an event
        for time, step, amount, event in entries:
            if event is not None:
                self._event(event, time)
            else:
                if step >= 0:
                    self.replay.record(step, amount, time is not None)
                self._sign(time)
        parsed = (parse(line) for line in self._lines)
        self.recent = [r for r in parsed if r is not None and r.keys() >= {"step", "seconds"}]
        if self.recent:
            self.metrics |= {k: self.recent[-1][k] for k in METRICS if k in self.recent[-1]}
        return self.num_read != before

    def _read_records(self) -> list[tuple[float | None, int, float, Record | None]]:
        """New lines of metrics.jsonl as (time, step, amount, None); step -1: of validation."""
        out: list[tuple[float | None, int, float, Record | None]] = []
        for line in self._metrics.lines():
            self.num_read += 1
            found = QUICK.match(line)
            if found is not None:
                self._lines.append(line)
                self.unit = found[2].decode()
                if self.curve.wants() and (record := parse(line)) is not None:
                    self.curve.add(record, self.unit)
                out.append((float(found[4]), int(found[1]), float(found[3]), None))
                continue
            record = parse(line)
            if record is None or record.get("step", -1) < 0:
                continue
            time = record.get("time")
            if not record.get("seconds"):
                self.metrics |= {k: record[k] for k in METRICS if k in record}
                out.append((time, -1, 0.0, None))
                continue
            self._lines.append(line)
            self.unit = next((u for u in COUNTED if u in record), "audio_hours")
            if self.curve.wants():
                self.curve.add(record, self.unit)
            out.append((time, int(record["step"]), record.get(self.unit) or 0.0, None))
        return out

    def _read_events(self) -> list[tuple[float | None, int, float, Record]]:
        """New lines of events.jsonl as (time, -1, 0, event)."""
        out = []
        for line in self._events.lines():
            self.num_read += 1
            event = parse(line)
            if event is not None and isinstance(event.get("event"), str):
                out.append((event.get("time"), -1, 0.0, event))
        return out

    def _sign(self, time: float | None, alive: bool = True) -> None:
        """Something was logged; by the run itself where it is a sign that it was `alive`."""
        if time is not None:
            if self.last_sign is None or time > self.last_sign:
                self.last_sign = time
            if alive and (self._alive is None or time > self._alive):
                self._alive = time

    def _event(self, event: Record, time: float | None) -> None:
        self.last_events.append(event)
        name = event["event"]
        if name in STARTS:
            self.starts.append(event)
            self.replay.start(int(event.get("step", 0)))
        if name == "resumed" and time is not None and self._alive is not None:
            self.restart_seconds += max(0.0, time - self._alive)
        if name == "saved":
            self.saving_seconds += event.get("pause_seconds") or event.get("seconds") or 0.0
        if name == "sample_skipped":
            self.num_skipped = max(self.num_skipped, event.get("total", 0))
        if name == "alarm":
            self.alarms.append(event)
        if name in (*STARTS, "finished", "preempted") or event.get("action") == "stop":
            self.end = event
        self._sign(time, "job" not in event)  # that a job failed is noted by its script

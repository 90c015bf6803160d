"""What an attacked run must still be: the uninterrupted one; and the report that says so."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from w2v2dist.runtime.logging import read_jsonl

RESTARTS = ("start", "resumed")
# Relative, fp32: other numbers of processes add up in another order, and hundreds of updates carry
# the difference on
LOSS_TOLERANCE = 2e-5


@dataclass
class Attack:
    """One attack, and how the run came back from it."""

    kind: str
    what: str = ""
    time: float = 0.0  # seconds since the epoch
    step: int = 0  # the last one logged when it struck
    num_events: int = 0  # before it
    job: str = ""
    requeues: str = "0"  # of the job, by Slurm's count
    back: list[str] = field(default_factory=list)
    steps_redone: int = 0
    seconds_lost: float = 0.0

    def judge(self, run_dir: Path, job: str, requeues: str) -> bool:
        """Whether the run has made a step that it had not made before the attack; if so, note how
        it came back."""
        events = read_jsonl(run_dir / "events.jsonl")[self.num_events :]
        restarts = [e for e in events if e["event"] in RESTARTS]
        if not restarts:
            return False
        last, metrics = restarts[-1], losses(run_dir)
        done = [r for r in metrics if r["time"] < last["time"]]
        highest = max((r["step"] for r in done), default=0)
        new = [r for r in metrics if r["time"] >= last["time"] and r["step"] > highest]
        if not new:
            return False
        step, size = resume_point(last)
        self.steps_redone = highest - step
        self.seconds_lost = new[0]["time"] - (done[-1]["time"] if done else self.time)
        if job != self.job:
            way = "submitted again"
        else:
            way = "in its allocation" if requeues == self.requeues else "requeued"
        self.back = [
            *(f"saved at {e['step']}" for e in events if e["event"] == "preempted"),
            *(f"{Path(e['path']).name} refused" for e in events if is_damage(e)),
            way,
            f"resumed at {step}" if last["event"] == "resumed" else "started anew",
            f"{size} process{'es' * (size > 1)}",
        ]
        if len(restarts) > 1:
            self.back[-1] += f" at the {len(restarts)}. start"
        return True


def is_damage(event: dict[str, Any]) -> bool:
    """Whether the event tells of a checkpoint that could not be read."""
    return bool(event["event"] == "checkpoint_damaged")


def resume_point(event: dict[str, Any]) -> tuple[int, int]:
    """The step from which an attempt goes on (0: afresh) and its number of processes."""
    return event.get("step", 0), event.get("new_world_size") or event["world_size"]


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """The training records of metrics.jsonl, repeated steps included."""
    return [r for r in read_jsonl(run_dir / "metrics.jsonl") if "loss" in r]


def attempts(run_dir: Path) -> list[dict[str, Any]]:
    """The events with which each attempt began."""
    return [e for e in read_jsonl(run_dir / "events.jsonl") if e["event"] in RESTARTS]


def read_samples(
    run_dir: Path, num_slots: int
) -> tuple[dict[tuple[int, int], list[Any]], list[str]]:
    """(step, slot) -> its records over all attempts; and what no sequence of attempts explains:
    within an attempt, rank r of W logs the slots r, r + W, … of every step, each once, in order."""
    found, problems = defaultdict(list), []
    points = [resume_point(e) for e in attempts(run_dir)]
    for path in sorted((run_dir / "logs").glob("samples-*.jsonl")):
        rank = int(path.stem.removeprefix("samples-"))
        starts = [((step + 1, rank), size) for step, size in points if rank < size]
        due = {-1: (0, 0)}  # what may come next, by the attempt that may be going on
        for record in read_jsonl(path):
            key = step, slot = record["step"], record["slot"]
            found[key].append(record)
            going_on = {i for i, expected in due.items() if expected == key}
            going_on |= {i for i, start in enumerate(starts) if start[0] == key and i > min(due)}
            if not going_on:
                problems.append(f"{path.name}: (step, slot) {key} where {due[max(due)]} is due")
                going_on = {max(due)}
            sizes = {i: starts[i][1] if starts else num_slots for i in going_on}
            due = {
                i: (step, slot + size) if slot + size < num_slots else (step + 1, rank)
                for i, size in sizes.items()
            }
    return found, problems


def repeated_exactly(run_dir: Path) -> tuple[int, int]:
    """Of the steps that were computed again after the same numbers of processes in all steps
    before: how many, and how many with the same bits."""
    starts, state, seen = attempts(run_dir), {0: 0}, {}
    number, history, repeated, equal = 0, 0, 0, 0
    for record in losses(run_dir):
        while number < len(starts) and starts[number]["time"] <= record["time"]:
            history = state[resume_point(starts[number])[0]]
            number += 1
        history = hash((history, record["step"], record["world_size"]))
        state[record["step"]] = history
        if history in seen:
            repeated += 1
            equal += seen[history] == record["loss"]
        seen[history] = record["loss"]
    return repeated, equal


def referee(run_dir: Path, reference: Path) -> list[tuple[bool, str]]:
    """(whether it holds, the finding in words) for each claim on a run that was attacked."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    num_slots, max_steps = config["data"]["virtual_world_size"], config["loop"]["max_steps"]
    samples, problems = read_samples(run_dir, num_slots)
    whole, more_problems = read_samples(reference, num_slots)
    missing = [k for k in whole if k not in samples]
    other = [k for k, records in samples.items() if any([r] != whole.get(k) for r in records)]
    expected = {r["step"]: r["loss"] for r in losses(reference)}
    records = losses(run_dir)
    deviation, worst = max((abs(r["loss"] / expected[r["step"]] - 1), r["step"]) for r in records)
    final = abs(records[-1]["loss"] / expected[max_steps] - 1)
    repeated, equal = repeated_exactly(run_dir)
    events = read_jsonl(run_dir / "events.jsonl")
    num_records = sum(map(len, samples.values()))
    return [
        (
            events[-1]["event"] == "finished" and records[-1]["step"] == max_steps,
            f"the run ended with the event {events[-1]['event']} at step {records[-1]['step']} of "
            f"{max_steps}",
        ),
        (
            not missing and len(whole) == max_steps * num_slots,
            f"of the uninterrupted run's {len(whole)} (step, slot) pairs, {len(missing)} are "
            f"missing {missing[:5] or ''}",
        ),
        (
            not other,
            f"{len(other)} of {len(samples)} pairs used other samples, crops or masks than the "
            f"uninterrupted run {other[:5] or ''}",
        ),
        (
            not problems and not more_problems,
            f"within each attempt every pair was used once, in order; {num_records - len(samples)} "
            f"records are repetitions by a later attempt {(problems + more_problems)[:5] or ''}",
        ),
        (
            {r["step"] for r in records} == expected.keys() and deviation <= LOSS_TOLERANCE,
            f"every logged loss ({len(records)}) equals the uninterrupted run's to "
            f"{deviation:.1e} (relative; at step {worst}; tolerance {LOSS_TOLERANCE:.0e})",
        ),
        (
            final <= LOSS_TOLERANCE,
            f"the final loss is {records[-1]['loss']:.6f}, the uninterrupted run's "
            f"{expected[max_steps]:.6f} ({final:.1e})",
        ),
        (
            equal == repeated,
            f"{equal} of {repeated} steps that were computed again by as many processes, with the "
            f"same history, have the same loss to the bit",
        ),
    ]


def seconds(run_dir: Path) -> float:
    """From the start of a run to its last step."""
    return float(losses(run_dir)[-1]["time"] - attempts(run_dir)[0]["time"])


def report(
    attacks: list[Attack], findings: list[tuple[bool, str]], run_dir: Path, header: list[str]
) -> str:
    """The report in Markdown."""
    began = attempts(run_dir)[0]["time"]
    redone = sum(a.steps_redone for a in attacks)
    sizes = Counter(resume_point(e)[1] for e in attempts(run_dir))
    lines = [
        *header,
        "",
        f"**{'Passed' if all(ok for ok, _ in findings) else 'FAILED'}.** {len(attacks)} attacks; "
        f"{redone} steps redone, {sum(a.seconds_lost for a in attacks):.0f} of "
        f"{seconds(run_dir):.0f} s "
        "lost (from the last step before an attack's end to the first step that was not made "
        "before; waiting in the queue and start-up included). Attempts: "
        + ", ".join(f"{n} with {size}" for size, n in sorted(sizes.items()))
        + " processes.",
        "",
        *(f"- {'' if ok else '**FAILED**: '}{text.strip()}" for ok, text in findings),
        "",
        "| # | s | step | attack | came back | redone | lost, s |",
        "|-|-|-|-|-|-|-|",
        *(
            f"| {i} | {a.time - began:.0f} | {a.step} | **{a.kind}**: {a.what} "
            f"| {', '.join(a.back)} | {a.steps_redone} | {a.seconds_lost:.0f} |"
            for i, a in enumerate(attacks, 1)
        ),
        "",
        "| attack | times | steps redone | seconds lost, mean |",
        "|-|-|-|-|",
    ]
    for kind, count in sorted(Counter(a.kind for a in attacks).items()):
        of_kind = [a for a in attacks if a.kind == kind]
        lost = sum(a.seconds_lost for a in of_kind) / count
        lines.append(f"| {kind} | {count} | {sum(a.steps_redone for a in of_kind)} | {lost:.0f} |")
    return "\n".join(lines) + "\n"

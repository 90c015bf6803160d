"""The attempts of a run, as its logs have them."""

from pathlib import Path
from typing import Any

from w2v2dist.runtime.logging import read_jsonl


def starts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of events.jsonl those with which an attempt begins."""
    return [e for e in events if e.get("event") in ("start", "resumed")]


def attempt(run_dir: Path, step: int) -> dict[str, int]:
    """Of a start at `step`: the attempt's number, from 1, and how many logged steps are lost."""
    before = starts(read_jsonl(run_dir / "events.jsonl"))
    since = before[-1]["time"] if before else 0.0
    steps = [r["step"] for r in read_jsonl(run_dir / "metrics.jsonl") if r.get("time", -1) >= since]
    return {"attempt": len(before) + 1, "lost_steps": max([0, *(s - step for s in steps)])}

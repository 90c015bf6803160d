"""Samples that cannot be used: each counted once, logged, and too many of them stop the run."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training.run_folder import Run

NUMBER = re.compile(r"(?<![\w+'])\d+(?![\w'])")  # an amount, not a symbol or its code


class BadSamples:
    """The keys of the samples that could not be used so far, the same on all processes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._keys: set[str] = set()

    def state(self) -> list[str]:
        """For a checkpoint."""
        return sorted(self._keys)

    def restore(self, state: list[str]) -> None:
        """Back to a checkpoint's state."""
        self._keys = set(state)

    def unknown(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the records whose sample has not been counted."""
        return [record for record in records if record["key"] not in self._keys]

    def count(self, records: list[dict[str, Any]], step: int) -> None:
        """Count each sample once; collective. Raises ConfigError past the limit, and for a failed
        read where data.on_read_error is stop."""
        found = {str(r["key"]): r for of_rank in self._run.world.gather(records) for r in of_rank}
        failed = [r for r in found.values() if r.get("read_error")]
        if failed and self._run.config.data.on_read_error == "stop":
            raise ConfigError(
                f"utterance {failed[0]['key']} of {failed[0]['shard']} {failed[0]['reason']}, and "
                "data.on_read_error is stop: mend the storage or copy the shard again and run the "
                "same command, or skip such utterances with data.on_read_error=skip"
            )
        new = {*found} - self._keys
        if not new:
            return
        self._keys |= new
        total, limit = len(self._keys), self._run.config.data.max_bad_samples
        where = "logs/skipped-*.jsonl"
        self._run.logger.event("sample_skipped", step=step, new=len(new), total=total, see=where)
        if total > limit:
            raise ConfigError(
                f"{total} utterances could not be used, more than data.max_bad_samples = {limit}: "
                f"{most_frequent_fault(self._run.path)}; {where} names each with its reason; "
                "run shards/verify.py, copy or build the shards again, or raise the limit"
            )


def most_frequent_fault(run_dir: Path) -> str:
    """Why most utterances were skipped and in which shard most of them lie, with their numbers."""
    logs = sorted((run_dir / "logs").glob("skipped-*.jsonl"))
    return most_frequent([*{r["key"]: r for log in logs for r in read_jsonl(log)}.values()])


def most_frequent(skipped: list[dict[str, Any]]) -> str:
    """The same of records of skipped utterances."""
    said = {"the most frequent reason": Counter(NUMBER.sub("…", r["reason"]) for r in skipped)}
    said["the worst shard"] = Counter(Path(r["shard"]).name for r in skipped if "shard" in r)
    tops = [(what, *counts.most_common(1)[0]) for what, counts in said.items() if counts]
    return ", ".join(f"{what} is {top!r} ({count} of {len(skipped)})" for what, top, count in tops)

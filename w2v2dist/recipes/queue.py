"""What Slurm says of the jobs of a recipe."""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Found = Literal["queued", "running", "unknown"]
# Slurm's words for a job that still may do something, and ours
ALIVE: dict[str, Found] = {
    **dict.fromkeys(("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING"), "running"),
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING"), "queued"
    ),
    **dict.fromkeys(("SUSPENDED", "STOPPED", "SPECIAL_EXIT", "RESV_DEL_HOLD"), "queued"),
}
NEVER = "DependencyNeverSatisfied"
TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Queue:
    """Jobs that are in the queue or run; `answers` is false where Slurm could not be asked."""

    jobs: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # id -> state, reason
    answers: bool = True

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Queue":
        """What squeue says, where there is one and a job to ask for."""
        if not any(ids):
            return cls()
        if shutil.which("squeue") is None:
            return cls({}, False)
        # %i of an array's task is JOB_TASK; a list of ids would be refused for one that has gone
        command = ["squeue", "--noheader", "--array", "--format=%i|%T|%r"]
        try:
            shown = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
            ).stdout
        except (subprocess.SubprocessError, OSError):
            return cls({}, False)
        rows = (line.strip().split("|", 2) for line in shown.splitlines() if line.count("|") >= 2)
        return cls({job: (state, reason) for job, state, reason in rows})

    def state(self, job: str) -> Found | None:
        """queued or running; None of a job that has ended; unknown where Slurm does not answer."""
        if not job:
            return None
        if not self.answers:
            return "unknown"
        state, reason = self.jobs.get(job, ("", ""))
        return None if reason == NEVER else ALIVE.get(state)

    def reason(self, job: str) -> str:
        """Why it waits, in Slurm's words."""
        return self.jobs.get(job, ("", ""))[1].replace("None", "")

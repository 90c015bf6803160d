"""One stage of a recipe, as its job runs it: `python -m w2v2dist.jobs.recipe_stage TASK.json`. What
it makes gets its name when all of it is there."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from w2v2dist import __version__
from w2v2dist.jobs.child import CAUGHT, start_child
from w2v2dist.recipes.build import REPOSITORY
from w2v2dist.recipes.recipe import DONE, EVALUATION, OUT, digest_of, read_json
from w2v2dist.recipes.state import end_path, write_json
from w2v2dist.training.lock import InUseError, locked

CONTINUE = ("tune", "evaluate")  # kinds that go on with what they have: trials


def make(path: Path, output: TextIO | None = None) -> int:
    """Make the stage of a task's file: 0 where it is done, also by another; else the exit status of
    the command that failed, or 128 + the signal that ended it. `output` gets what commands say."""
    task = read_json(path)
    while True:
        try:
            with locked(Path(task["lock"])):
                return _made(path, task, output)
        except InUseError as error:  # a job that was submitted twice waits for the first
            print(error, file=output, flush=True)


def _made(path: Path, task: dict[str, Any], output: TextIO | None) -> int:
    folder, part = Path(task["folder"]), Path(task["part"])
    if read_json(folder / DONE).get("fingerprint") == task["fingerprint"]:
        return 0
    started, end = time.time(), end_path(path.parent.parent, task["stage"])
    end.unlink(missing_ok=True)
    if need := _unready(task):
        why = f"{need} is not done as {task['stage']} needs it: give the recipe again"
        write_json(end, {"fingerprint": task["fingerprint"], "why": why, "needs": need})
        print(f"error: {why}", file=output, flush=True)
        return 1
    if part != folder and task["kind"] not in CONTINUE:
        shutil.rmtree(part, ignore_errors=True)  # what an attempt left that did not come to its end
    part.mkdir(parents=True, exist_ok=True)
    with _Child() as child:
        for template in task["templates"]:
            argv = [word.replace(OUT, str(part)) for word in template]
            print(f"$ {' '.join(argv)}", file=output, flush=True)
            status = child.run(program(argv), task["cwd"], output)
            if status:
                said = f"`{' '.join(argv)}` ended with exit status {status}"
                values = {"fingerprint": task["fingerprint"], "why": said, "status": status}
                values |= {"signal": child.received[0]} if child.received else {}
                write_json(end, values)
                return 128 + child.received[0] if child.received else status
    if absent := [name for name in task["outputs"] if not (part / name).exists()]:
        why = f"its commands ended well, but {part / absent[0]} is not there"
        write_json(end, {"fingerprint": task["fingerprint"], "why": why, "status": 1})
        print(f"error: {why}", file=output, flush=True)
        return 1
    finish(task, part, time.time() - started)
    return 0


def _unready(task: Mapping[str, Any]) -> str:
    """Which stage that this one needs is not as it was to be; "" where all are."""
    for name, (folder, fingerprint) in task["needs"].items():
        if read_json(Path(folder) / DONE).get("fingerprint") != fingerprint:
            return str(name)
    return ""


def finish(task: Mapping[str, Any], part: Path, seconds: float) -> None:
    """Write done.json and give the results their names."""
    folder = Path(task["folder"])
    values = {name: task[name] for name in ("stage", "kind", "fingerprint", "what")}
    where = {"job": job_here(), "host": platform.node(), "version": __version__}
    if (digest := digest_of(part / EVALUATION)) is not None:
        values["digest"] = digest
    write_json(part / DONE, {**values, "seconds": round(seconds, 1), "time": time.time(), **where})
    if part != folder:
        if folder.exists():  # of no record: not ours
            kept = folder.parent / "replaced"
            kept.mkdir(exist_ok=True)
            folder.rename(kept / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        part.rename(folder)


def job_here() -> str:
    """The Slurm job that this process is of; "" outside of one."""
    array = [os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK")]
    return "_".join(array) if all(array) else os.environ.get("SLURM_JOB_ID", "")


def program(argv: Sequence[str]) -> list[str]:
    """What the words of a command start here."""
    if argv[0] == "python":
        script = Path(argv[1])
        return [sys.executable, str(script if script.exists() else REPOSITORY / script), *argv[2:]]
    return [sys.executable, "-m", "w2v2dist.cli", *argv[1:]]


class _Child:
    """The command at work: it gets the signals of this process, and ends with it."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Child":
        self.previous = {number: signal.signal(number, self.forward) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the first ends the command, the second kills it."""
        self.received.append(number)
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM if len(self.received) == 1 else signal.SIGKILL)

    def run(self, argv: list[str], cwd: str, output: TextIO | None) -> int:
        """The exit status of a command; that of a signal where one came before."""
        if self.received:
            return 128 + self.received[0]
        errors = subprocess.STDOUT if output is not None else None
        self.process = start_child(argv, cwd=cwd, stdout=output, stderr=errors)
        if self.received:  # while it was started
            self.process.terminate()
        status = self.process.wait()
        self.process = None
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(make(Path(sys.argv[1])))

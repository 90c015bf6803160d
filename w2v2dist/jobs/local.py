"""A job on this machine: one process per rank; a training is the same TrainJob as on a cluster."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from w2v2dist.jobs.child import CAUGHT, start_child
from w2v2dist.runtime.distributed import free_port
from w2v2dist.runtime.preemption import EXIT_PREEMPTED

TRAIN = "w2v2dist.jobs.cluster"
EXIT_TIMEOUT = 124  # as of timeout(1)


def run_local(
    arguments: list[str],
    log_dir: Path,
    num_processes: int,
    *,
    module: str = TRAIN,
    quiet: bool = False,
    timeout_s: float = math.inf,
) -> int:
    """Run `python -m module` with `arguments` (a training's: CONFIG [key=value ...]) here, one
    process per rank. Rank R writes to log_dir/rank_R.log, rank 0 to this console unless `quiet`.
    Ctrl-C, TERM and the death of this process make all ranks of a training save; a second signal
    ends them. Returns the exit status: 0, EXIT_PREEMPTED where a signal ended a run that saved,
    EXIT_TIMEOUT for ranks that were killed after `timeout_s`, else that of the first rank to fail.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            process.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    previous = {number: signal.signal(number, forward) for number in CAUGHT}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place["WORLD_SIZE"] = str(num_processes)
    try:
        for rank in range(num_processes):
            place |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = None if rank == 0 and not quiet else log_dir / f"rank_{rank}.log"
            ranks.append(_start([module, *arguments], place, log_dir, log))
            if received:  # while it was started
                ranks[-1].terminate()
        return _wait(ranks, None if quiet else log_dir, timeout_s)
    finally:
        for process in ranks:
            process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def processes_here(asked: int | None, most: int) -> int:
    """How many ranks: those that were asked for, else one a GPU (on the CPU 2), `most` at most.
    Raises ValueError."""
    import torch

    number = min(torch.cuda.device_count() or 2, most) if asked is None else asked
    if number < 1:
        raise ValueError(f"--processes is {number} but must be at least 1")
    return number


def _start(
    command: list[str], place: dict[str, str], log_dir: Path, log: Path | None
) -> subprocess.Popen[bytes]:
    submitit = {"JOB_ID": f"local{os.getpid()}", "NTASKS": place["WORLD_SIZE"]}
    submitit |= {"GLOBALID": place["RANK"], "LOCALID": place["LOCAL_RANK"]}
    environment = {f"SUBMITIT_LOCAL_{name}": value for name, value in submitit.items()}
    environment |= {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_FOLDER": str(log_dir)}
    with Path(log or os.devnull).open("ab") as file:
        output = file if log else None  # None: rank 0 writes where this process does
        return start_child(
            [sys.executable, "-u", "-m", *command],
            env=os.environ | environment | place,
            stdout=output,
            stderr=output,
        )


def _wait(
    ranks: list[subprocess.Popen[bytes]],
    log_dir: Path | None,
    timeout_s: float,
    grace_s: float = 10.0,
) -> int:
    """Wait for all ranks; one that fails takes the others with it after `grace_s`, and the end of
    its log in `log_dir` is shown."""
    failed: list[tuple[int, int]] = []  # ranks and exit statuses, the first failure first
    last, deadline, running = time.monotonic() + timeout_s, math.inf, True
    while running:
        time.sleep(0.1)
        running = any([process.poll() is None for process in ranks])
        codes = [(r, process.returncode) for r, process in enumerate(ranks)]
        failed += [(r, code) for r, code in codes if code not in (None, 0, EXIT_PREEMPTED)]
        if failed:
            deadline = min(deadline, time.monotonic() + grace_s)
        if time.monotonic() > min(deadline, last):
            for process in ranks:
                process.kill()  # those that have ended do not mind
            if running and not failed:
                return EXIT_TIMEOUT
    if not failed:
        return max(process.returncode for process in ranks)
    rank, code = failed[0]
    if rank > 0 and log_dir:
        log = (log_dir / f"rank_{rank}.log").read_text(encoding="utf-8", errors="replace")
        print(f"rank {rank} failed; the end of its log in {log_dir}:", file=sys.stderr)
        print(*log.splitlines()[-20:], sep="\n", file=sys.stderr)
    return code if code > 0 else 128 - code


def last_line(folder: Path) -> str:
    """The error that the ranks' logs end with."""
    for log in sorted(folder.glob("rank_*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in lines if "Error" in line.split(":")[0]]
        if found:
            return found[-1]
    return "its processes ended without an error"

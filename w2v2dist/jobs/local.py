"""A training job on this machine: one process per rank, the same TrainJob as on a cluster."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from w2v2dist.runtime.distributed import free_port
from w2v2dist.runtime.preemption import EXIT_PREEMPTED

PR_SET_PDEATHSIG = 1
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_local(arguments: list[str], log_dir: Path, num_processes: int) -> int:
    """Train `arguments` (CONFIG [key=value ...]) here, one process per rank. Rank 0 writes to this
    console, rank R to log_dir/rank_R.log. Ctrl-C, TERM and the death of this process make all ranks
    save; a second signal ends them. Returns the exit status: 0, EXIT_PREEMPTED where a signal ended
    a run that saved, else that of the first rank to fail."""
    log_dir.mkdir(parents=True, exist_ok=True)
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            process.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    previous = {number: signal.signal(number, forward) for number in CAUGHT}
    port = str(free_port())
    try:
        for rank in range(num_processes):
            ranks.append(_start(rank, num_processes, port, arguments, log_dir))
        return _wait(ranks, log_dir)
    finally:
        for process in ranks:
            process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(
    rank: int, num_processes: int, port: str, arguments: list[str], log_dir: Path
) -> subprocess.Popen[bytes]:
    place = {"JOB_ID": f"local{os.getpid()}", "NTASKS": num_processes}
    place |= {"GLOBALID": rank, "LOCALID": rank}
    environment = {f"SUBMITIT_LOCAL_{name}": str(value) for name, value in place.items()}
    environment |= {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_FOLDER": str(log_dir)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with Path(log_dir / f"rank_{rank}.log" if rank else os.devnull).open("ab") as log:
        output = log if rank else None  # rank 0 writes where this process does
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "w2v2dist.jobs.cluster", *arguments],
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            # the terminal's Ctrl-C reaches this process alone, which forwards it
            start_new_session=True,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )


def _wait(ranks: list[subprocess.Popen[bytes]], log_dir: Path, grace_s: float = 10.0) -> int:
    """Wait for all ranks; one that fails takes the others with it after `grace_s`."""
    failed: list[tuple[int, int]] = []  # ranks and exit statuses, the first failure first
    deadline, running = float("inf"), True
    while running:
        time.sleep(0.1)
        running = any([process.poll() is None for process in ranks])
        codes = [(r, process.returncode) for r, process in enumerate(ranks)]
        failed += [(r, code) for r, code in codes if code not in (None, 0, EXIT_PREEMPTED)]
        if failed:
            deadline = min(deadline, time.monotonic() + grace_s)
        if time.monotonic() > deadline:
            for process in ranks:
                process.kill()  # those that have ended do not mind
    if not failed:
        return max(process.returncode for process in ranks)
    rank, code = failed[0]
    if rank > 0:
        log = (log_dir / f"rank_{rank}.log").read_text(encoding="utf-8", errors="replace")
        print(f"rank {rank} failed; the end of its log in {log_dir}:", file=sys.stderr)
        print(*log.splitlines()[-20:], sep="\n", file=sys.stderr)
    return code if code > 0 else 128 - code

"""The cells of a sweep on this machine, one after another or some at a time. `python -m
w2v2dist.jobs.sweep_here CONFIG FOLDER N` is one of them, of N processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from w2v2dist.jobs.child import CAUGHT, start_child
from w2v2dist.jobs.local import run_local
from w2v2dist.jobs.sweep import Cell, Sweep
from w2v2dist.runtime.preemption import EXIT_PREEMPTED

ENDED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # exit status of a process that does not catch it
Running = dict[int, tuple[Cell, "subprocess.Popen[bytes]"]]  # by place, which may be a GPU


def run_here(sweep: Sweep, num_processes: int, at_once: int, num_gpus: int) -> int:
    """Train all cells that are not finished, `at_once` at a time, each with `num_processes`; their
    output goes to RUN/logs/here.log. A cell that fails does not keep the others from running. A
    signal lets all save, a second one ends them. Exit status: 0 all finished, EXIT_PREEMPTED saved
    on a signal, 1 some failed."""
    sweep.write_manifest()
    waiting = [cell for cell in sweep.cells if not cell.is_finished]
    print(
        f"{len(sweep.cells)} cells, {len(sweep.cells) - len(waiting)} of them finished", flush=True
    )
    running: Running = {}
    failed: list[str] = []
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    forwarded = 0
    previous = {number: signal.signal(number, remember) for number in CAUGHT}
    try:
        while running or (waiting and not received):
            while waiting and len(running) < at_once and not received:
                place = min({*range(at_once)} - running.keys())
                gpu = place % num_gpus if num_gpus > 1 and num_processes == 1 else None
                running[place] = (waiting[0], _start(waiting.pop(0), num_processes, gpu))
            if forwarded < len(received):  # here, where no cell is just being started
                forwarded += 1
                for _, process in running.values():
                    process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            failed += _ended(running, stopped=bool(received))
    finally:
        for _, process in running.values():
            process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        return EXIT_PREEMPTED
    return 1 if failed else 0


def _ended(running: Running, *, stopped: bool) -> list[str]:
    """Take out what has ended, and say so; the names of those that failed. `stopped`: a signal has
    been forwarded, which ends a cell that is still being started."""
    failed = []
    for place, (cell, process) in [*running.items()]:
        if (status := process.poll()) is None:
            continue
        del running[place]
        words = {0: "finished", EXIT_PREEMPTED: "saved on a signal"}
        if stopped:
            words |= dict.fromkeys(ENDED, "ended by the signal before it began")
        said = words.get(status)
        if said is None:
            failed.append(cell.name)
            said = f"failed (exit status {status}), see {cell.folder / 'logs' / 'here.log'}"
        print(f"{cell.name}: {said}", flush=True)
    return failed


def _start(cell: Cell, num_processes: int, gpu: int | None) -> "subprocess.Popen[bytes]":
    config = cell.write_config()
    module = "w2v2dist.jobs.sweep_here"
    command = [sys.executable, "-m", module, str(config), str(config.parent), str(num_processes)]
    visible = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    print(f"{cell.name}: begins", flush=True)
    with (config.parent / "here.log").open("ab") as log:
        return start_child(command, env=os.environ | visible, stdout=log, stderr=log)


if __name__ == "__main__":
    sys.exit(run_local([sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3])))

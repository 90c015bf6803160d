"""The kit for the day of the GPU: stages of at most 8 minutes on one bare machine with one GPU.

    make gpu OUTPUT=gpu STAGES="machine tests step_base"
    python benchmarks/gpu.py --output gpu [STAGE ...] [--again] [--tiny]
    python benchmarks/gpu_page.py gpu > benchmarks/results/DATE-gpu.md

Every stage is a process of its own; what it finds is OUTPUT/STAGE.json, written when it ends, and
what it says OUTPUT/STAGE.log. A stage that has succeeded is skipped unless --again is given; one
that fails or outlasts its time is recorded with the end of its output, and the next one goes on.
Where --again fails, the result stays, and the failure is OUTPUT/STAGE.failed.json.
--tiny rehearses all of it on a CPU with the same code at tiny sizes; it replaces no real result,
and is none. Nothing is downloaded. The exit status is 1 where a stage failed, and 130 after Ctrl-C
or TERM, which end the stage with all that it started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_stages import STAGES, Kit
from benchmarks.machine import ROOT, machine, write_json
from w2v2dist.runtime.files import unwritable

LIMIT_S = 480.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END = 3000  # characters of a failed stage's output that are kept


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; default: all")
    add("--output", type=Path, default=Path("gpu"), help="folder of the results")
    add("--again", action="store_true", help="also what has a result")
    add("--tiny", action="store_true", help="tiny sizes, on the CPU: a rehearsal")
    add("--input", type=Path, help="recordings to train on; default: noise like speech")
    add("--limit", type=float, default=LIMIT_S, help="seconds that a stage may take")
    add("--stage", help=argparse.SUPPRESS)  # run this one in this process
    args = parser.parse_args(arguments)
    unknown = [name for name in args.stages if name not in STAGES]
    if unknown:
        parser.error(f"no stage is called {unknown[0]}: choose from {', '.join(STAGES)}")
    args.stages = args.stages or list(STAGES)
    if not 0 < args.limit < math.inf:
        parser.error(f"--limit is {args.limit:g} but must be above 0 seconds, and finite")
    if why := unwritable(args.output / "machine.json"):
        parser.error(f"--output: {why}")
    if args.input and not args.input.exists():
        parser.error(f"--input {args.input} does not exist: name a folder of recordings")
    args.output = args.output.resolve()
    args.input = args.input and args.input.resolve()  # a stage works in another folder
    return args


def has_result(path: Path, tiny: bool) -> bool:
    """Whether a stage has succeeded, in a rehearsal or for real."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        record = json.loads(path.read_text(encoding="utf-8"))
        return bool(record["status"] == "done" and record["tiny"] is tiny)
    return False


def run_stage(args: argparse.Namespace) -> int:
    """The stage of --stage, in this process; its result is written when all of it is there."""
    started = time.perf_counter()
    kit = Kit(output=args.output, tiny=args.tiny, input=args.input)
    try:
        found = STAGES[args.stage](kit)
    except Exception as error:
        traceback.print_exc()
        print(f"error: {args.stage}: {error}", flush=True)
        return 1
    record = {
        "stage": args.stage,
        "status": "done",
        "seconds": round(time.perf_counter() - started, 1),
        "tiny": args.tiny,
        "command": command(args, args.stage),
        "machine": machine(),
        "notes": kit.notes,
        "result": found,
    }
    write_json(args.output / f"{args.stage}.json", record)
    return 0


def command(args: argparse.Namespace, stage: str) -> str:
    """What runs a stage again."""
    more = f" --input {args.input}" * (args.input is not None) + " --tiny" * args.tiny
    return f"python benchmarks/gpu.py {stage} --output {args.output.name} --again{more}"


def start_stage(args: argparse.Namespace, stage: str) -> str | None:
    """Run a stage in a process of its own; why it failed, or None."""
    log_path, started = args.output / f"{stage}.log", time.perf_counter()
    path, failure = args.output / f"{stage}.json", args.output / f"{stage}.failed.json"
    kept = has_result(path, args.tiny)
    own = [sys.executable, __file__, "--stage", stage, "--output", str(args.output)]
    own += ["--tiny"] * args.tiny + (["--input", str(args.input)] if args.input else [])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    if args.tiny:
        env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with log_path.open("wb") as log:
        caught: list[int] = []  # signals, until the process that they would leave behind is known
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number in (n for n, handler in handlers.items() if handler != signal.SIG_IGN):
            signal.signal(number, lambda number, _: caught.append(number))
        process = subprocess.Popen(
            own, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if caught:
                raise KeyboardInterrupt
            code: int | None = process.wait(args.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # and what it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == 0:
        failure.unlink(missing_ok=True)
        return None
    lines = log_path.read_text(encoding="utf-8", errors="replace").strip()
    said = [line for line in lines.splitlines() if line.startswith("error: ")]
    reason = said[-1].removeprefix(f"error: {stage}: ") if said else f"it ended with status {code}"
    if code is None:
        reason = f"it took more than {args.limit:g} s"
    record: dict[str, Any] = {
        "stage": stage,
        "status": "failed",
        "seconds": round(time.perf_counter() - started, 1),
        "tiny": args.tiny,
        "command": command(args, stage),
        "machine": machine(),
        "reason": reason,
        "output_end": lines[-END:],
    }
    write_json(failure if kept else path, record)
    return f"{reason}; {path} keeps the result before, {failure} has this" if kept else reason


def interrupted(number: int, frame: object) -> None:
    """On a signal: what ends a stage and what it started is the same as for Ctrl-C."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """0; 1 where a stage failed, 130 where a signal ended it."""
    args = parse_args(arguments)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]  # nohup
    try:
        for number in heard:
            signal.signal(number, interrupted)
        return run(args)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what has no result", file=sys.stderr)
        return 130
    finally:
        for number in heard:
            signal.signal(number, before[number])


def run(args: argparse.Namespace) -> int:
    """All stages that were asked for, or the one of --stage."""
    args.output.mkdir(parents=True, exist_ok=True)
    if args.stage:
        return run_stage(args)
    failed = []
    for stage in args.stages:
        path = args.output / f"{stage}.json"
        if has_result(path, args.tiny) and not args.again:
            print(f"{stage}: has a result ({path}); --again repeats it", flush=True)
            continue
        if args.tiny and has_result(path, False):
            print(f"{stage}: NOT RUN: {path} is no rehearsal's: give another --output", flush=True)
            failed.append(stage)
            continue
        print(f"{stage}: …", flush=True)
        started = time.perf_counter()
        reason = start_stage(args, stage)
        failed += [stage] * (reason is not None)
        seconds = time.perf_counter() - started
        print(f"{stage}: {'done' if reason is None else f'FAILED: {reason}'} ({seconds:.0f} s)")
    print(f"the page: python benchmarks/gpu_page.py {args.output}")
    if failed:
        print(f"failed: {' '.join(failed)}; what ran has the end of its output in its JSON file")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

"""One pre-training step (forward, loss, backward; `--optimizer` adds Adam), side by side.

    python benchmarks/step.py --model base --engine ours --engine huggingface
    python benchmarks/step.py --model large --precision bf16 --optimizer --parts
    python benchmarks/step.py --model tiny --engine ours --engine FILE.py --repeat 9

FILE.py has make_model(config: Wav2Vec2Config) -> callable(wave) -> loss: wave (B, S) is on the
device; the callable draws its own masks and distractors and returns a 0-d loss. A module is moved,
cast to `--precision` and put into training mode; anything else runs under autocast, and where it
has parameters(), their gradients are cleared before every step.

Every engine is a process of its own, so that peak memory is its own. They live at the same time and
take turns, one step each, so that what else the machine does meets all; the matrix rate is measured
in the same turns. Where the memory of a CPU is too small for that, or with --one-at-a-time, they
start and end one after the other, round after round. Masks and distractors are drawn inside the
step, LayerDrop is 0, all other dropouts are the configuration's. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import ROOT, machine, peak_flops, write_json
from benchmarks.step_engine import DTYPES, MATRIX, MODELS, count_flops, model_config
from benchmarks.step_page import markdown
from w2v2dist.runtime.files import unwritable

# Big blocks are kept by the process: without page faults at every step
TUNED = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
TUNED["MALLOC_TOP_PAD_"] = "67108864"


@dataclass(kw_only=True)
class Measured:
    """What is known of one engine."""

    engine: str
    seconds: dict[int, float] = field(default_factory=dict)  # by turn
    rates: list[float] = field(default_factory=list)  # of the matrix engine
    peak: int = 0
    loss: float | None = None
    error: str | None = None
    more: dict[str, Any] = field(default_factory=dict)  # parts, profile


class Process:
    """An engine's process. Commands raise RuntimeError with the reason where it cannot."""

    def __init__(self, engine: str, args: argparse.Namespace) -> None:
        names = "model precision rows samples threads optimizer activation_checkpointing"
        settings = {name: getattr(args, name) for name in names.split()} | {"engine": engine}
        self.timeout_s, self.log = args.timeout, tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_engine", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=ROOT,
            env=environment(args),
        )
        try:
            self.threads = int(self._answer()["threads"])
        except BaseException:
            self.close()
            raise

    def do(self, what: str) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": what}).encode() + b"\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], self.timeout_s)
        if not ready:
            raise RuntimeError(f"no answer within --timeout {self.timeout_s:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self._ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _ended(self) -> str:
        code = self.process.wait()
        if code == -9:
            return "killed, which the kernel does where memory is full: pass fewer --rows"
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with status {code}: {lines[-1] if lines else 'no output'}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Of every engine: threads, and how memory is allocated."""
    out = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    if args.threads:
        out["OMP_NUM_THREADS"] = str(args.threads)
    if args.malloc == "tuned":
        return out | TUNED
    return out if args.malloc == "default" else out | {"LD_PRELOAD": args.malloc}


@contextlib.contextmanager
def started(engine: str, args: argparse.Namespace, row: Measured) -> Iterator[Process | None]:
    """The engine after a step that warms up; None where it failed, which is the row's error."""
    process = None
    if row.error is None:
        try:
            process = Process(engine, args)
            process.do("rate" if engine == MATRIX else "step")
        except RuntimeError as error:
            row.error = str(error)
            if process is not None:  # else it may go on computing beside the others
                process.close()
    try:
        yield process if row.error is None else None
    finally:
        if process is not None:
            process.close()


def turn(process: Process, row: Measured, number: int) -> None:
    """One step of an engine."""
    if row.error is not None:
        return
    try:
        if row.engine == MATRIX:
            row.rates.append(process.do("rate")["rate"])
            return
        answer = process.do("step")
        row.seconds[number] = answer["seconds"]
        row.peak, row.loss = max(row.peak, answer["peak"]), answer["loss"]
    except RuntimeError as error:
        row.error = str(error)
        process.close()


def details(process: Process, row: Measured, args: argparse.Namespace) -> None:
    """Where the time goes, after all turns."""
    wanted = ["parts"] * args.parts + ["profile"] * (args.parts or torch.cuda.is_available())
    for what in wanted if row.error is None and row.engine != MATRIX else []:
        try:
            row.more[what] = process.do(what)
        except RuntimeError as error:  # the times above stand
            row.more[what] = {"error": str(error)}
            process.close()
            return


def measure(args: argparse.Namespace) -> tuple[list[Measured], bool]:
    """All engines, the matrix rate last; and whether they took turns in one life."""
    rows = [Measured(engine=engine) for engine in [*args.engine, MATRIX]]
    roomy = args.together or torch.cuda.is_available() or fits(args)
    together = roomy and not args.one_at_a_time
    if together:
        with contextlib.ExitStack() as stack:
            live = [(row, stack.enter_context(started(row.engine, args, row))) for row in rows]
            for number in range(args.repeat):
                for row, process in live[:: -1 if number % 2 else 1]:
                    if process is not None:
                        turn(process, row, number)
            for row, process in live:
                if process is not None:
                    details(process, row, args)
        return rows, together
    for number in range(args.repeat):
        for row in rows[:: -1 if number % 2 else 1]:
            with started(row.engine, args, row) as process:
                if process is not None:
                    turn(process, row, number)
                    if number == args.repeat - 1:
                        details(process, row, args)
    return rows, together


def fits(args: argparse.Namespace) -> bool:
    """Whether the memory that is free holds the steps of all engines at once; rough, and on the
    safe side: what is kept of convolutions, layers and attention probabilities, twice for their
    gradients, and 16 bytes a weight."""
    config, values, frames = model_config(args.model), 0.0, float(args.samples)
    for stride in config.conv_strides:
        frames /= stride
        values += 4 * frames * config.conv_channels
    a_frame = 17 * config.embed_dim + 2 * config.num_heads * frames
    values += config.num_layers * frames * a_frame
    weights = config.num_layers * config.embed_dim * (4 * config.embed_dim + 2 * config.ffn_dim)
    needed = 8 * args.rows * values + 16 * weights + 5e8
    with Path("/proc/meminfo").open(encoding="utf-8") as file:
        free = next(1024 * int(line.split()[1]) for line in file if "MemAvailable" in line)
    return free > needed * len(args.engine)


def result(args: argparse.Namespace, rows: list[Measured], together: bool) -> dict[str, Any]:
    """All numbers, for --json and the table."""
    *engines, matrix = rows
    config, about = model_config(args.model, args.activation_checkpointing), machine()
    flops = count_flops(config, args.rows, args.samples)
    rate = statistics.median(matrix.rates) if matrix.rates else None
    peak = peak_flops(about["gpu"]) if args.precision != "fp32" else None
    out = []
    for row in engines:
        entry: dict[str, Any] = {"engine": row.engine, "error": row.error}
        if row.seconds:
            median = statistics.median(row.seconds.values())
            shared = [t for t in row.seconds if t in engines[0].seconds]
            pairs = [engines[0].seconds[t] / row.seconds[t] for t in shared]
            entry |= {
                "seconds": list(row.seconds.values()),
                "median": median,
                "first_over_this": statistics.median(pairs) if pairs else None,
                "audio_seconds_per_second": args.rows * args.samples / 16_000 / median,
                "flops_per_second": flops / median,
                "share_of_matrix_rate": flops / median / rate if rate else None,
                "mfu": flops / median / peak if peak else None,
                "peak_gib": row.peak / 2**30,
                "loss": row.loss,
                **row.more,
            }
        out.append(entry)
    arguments = {k: v for k, v in vars(args).items() if k not in ("json", "engine")}
    return {
        "machine": about,
        "command": "python benchmarks/step.py " + " ".join(sys.argv[1:]),
        "arguments": arguments,
        "together": together,
        "gflop": flops / 1e9,
        "matrix_gflops": rate / 1e9 if rate else None,
        "matrix_error": matrix.error,
        "engines": out,
    }


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; sizes that are not given are the paper's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="base")
    add("--precision", choices=DTYPES, default="fp32")
    add("--engine", action="append", help="ours, huggingface or FILE.py; several times")
    add("--rows", type=int, help="default: the paper's samples a GPU; base on a CPU: 2")
    add(
        "--samples",
        type=int,
        help="of a row; default: as training cuts them; base on a CPU: 250000",
    )
    add("--optimizer", action="store_true", help="add the update: fused Adam, fp32 weights")
    add("--activation-checkpointing", action="store_true")
    add("--parts", action="store_true", help="where the time goes, by part and by operator")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--one-at-a-time", action="store_true", help="never two engines in memory")
    how.add_argument("--together", action="store_true", help="all, however little memory is free")
    add("--malloc", default="tuned", help="tuned (glibc keeps big blocks), default, or a library")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--repeat", type=int, default=5, help="turns")
    add("--timeout", type=float, default=900.0, help="seconds that one step may take")
    add("--json", type=Path, help="write all numbers here")
    args = parser.parse_args(arguments)
    args.engine = [_found(name) for name in args.engine or ["ours", "huggingface"]]
    _, rows, samples = MODELS[args.model]
    if args.model == "base" and not torch.cuda.is_available():
        rows, samples = 2, 250_000
    args.samples = samples if args.samples is None else args.samples
    args.rows = rows if args.rows is None else args.rows
    if args.repeat < 1 or args.rows < 1 or args.samples < 1:
        parser.error("--repeat, --rows and --samples must be at least 1")
    if args.threads < 0 or not 0 < args.timeout < math.inf:
        parser.error("--threads must be at least 0 and --timeout above 0")
    if (least := model_config(args.model).receptive_field) > args.samples:
        parser.error(f"--samples is {args.samples} but a frame needs {least}")
    if args.precision == "fp16" and not torch.cuda.is_available():
        parser.error("--precision fp16 is of GPUs, and torch finds none: pass fp32 or bf16")
    if args.malloc not in ("tuned", "default") and not Path(args.malloc).is_file():
        parser.error(f"--malloc {args.malloc} is neither tuned, default nor a file: name a library")
    args.malloc = _found(args.malloc)
    if args.json and (why := unwritable(args.json)):
        parser.error(f"--json {why}")
    return args


def _found(name: str) -> str:
    """A file by its whole path, because an engine's process works in another folder."""
    known = name in ("ours", "huggingface", "tuned", "default") or not Path(name).is_file()
    return name if known else str(Path(name).resolve())


def main() -> int:
    """0; 1 where an engine failed."""
    args = parse_args()
    found = result(args, *measure(args))
    print(markdown(found), flush=True)
    if args.json:
        write_json(args.json, found)
    return int(any(e["error"] for e in found["engines"]))


if __name__ == "__main__":
    sys.exit(main())

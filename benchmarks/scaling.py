"""What a step sends between processes at each ZeRO stage: counted over gloo, beside the formula.

    python benchmarks/scaling.py --processes 2 4

Real processes on this machine train the model of configs/tiny_pretrain.yaml for some steps, two
micro-batches each. Collectives are counted where torch hands them to gloo, bytes where the kernel
takes them from this process (wchar of /proc/self/io: neither other processes nor headers of packets
are in it). Prints a Markdown table; exit status 1 where the formula is off by more than 2 %.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from w2v2dist.jobs.zero import Collective, exchange
from w2v2dist.model import Wav2Vec2ForPretraining
from w2v2dist.runtime.distributed import World, free_port
from w2v2dist.tasks.train import read_config
from w2v2dist.training.engine import Engine, EngineConfig, OptimizerConfig

ROOT = Path(__file__).parents[1]
NUM_ROUNDS, NUM_STEPS = 2, 3
CASES = [("fp32", 0), *((p, s) for p in ("bf16", "fp32") for s in (1, 2, 3))]
# Of c10d's operators; the smaller of input and output is a part of the whole tensor
KINDS = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allgather_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
}
SMALL = 64  # bytes of the numbers that are agreed on beside: norms, flags


class Collectives(TorchDispatchMode):
    """Bytes of the whole tensor of every collective, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, float] = defaultdict(float)
        self.names: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func._overloadpacket.__name__
            tensors = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
            size = max((t.numel() * t.element_size() for t in tensors), default=0)
            self.names[name] += 1
            if size > SMALL and name in KINDS:
                self.bytes[KINDS[name]] += size
        return func(*args, **(kwargs or {}))


def written_bytes() -> int:
    """What this process has handed to the kernel so far, sockets included."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def measure(world: World, precision: str, stage: int) -> dict[str, Any]:
    """One rank: a step's collectives and bytes sent, after two steps that are not counted."""
    config = read_config(str(ROOT / "configs/tiny_pretrain.yaml"), []).model
    torch.manual_seed(0)
    model = Wav2Vec2ForPretraining(config)
    sizes = [p.numel() for p in model.parameters()]
    settings = EngineConfig(precision=precision, zero_stage=stage)  # type: ignore[arg-type]
    with contextlib.redirect_stdout(io.StringIO()):
        engine = Engine(model, settings, OptimizerConfig(), NUM_ROUNDS, world)
    frames = config.num_frames(8_000)
    mask = (torch.arange(frames) % 2 == 0).unsqueeze(0)
    distractors = torch.randint(0, int(mask.sum()), (1, int(mask.sum()), 5))
    with Collectives() as counted:
        for step in range(NUM_STEPS + 2):
            if step == 2:  # stage 3 knows by now in which order weights are needed
                counted.bytes.clear()
                counted.names.clear()
                world.barrier()
                before = written_bytes()
            for last in (False, True):
                out = engine(torch.randn(1, 8_000), mask, distractors, drop_layers=[False] * 4)
                engine.backward(out.loss / out.num_masked / NUM_ROUNDS)
                engine.step(1e-4 if last else None)
        sent = written_bytes() - before
    return {
        "sizes": sizes,
        "sent": sent / NUM_STEPS,
        "collectives": {kind: size / NUM_STEPS for kind, size in counted.bytes.items()},
        "sum_bytes": torch.empty(0, dtype=engine.deepspeed.communication_data_type).itemsize,
    }


def rank(cases: list[tuple[str, int]]) -> None:
    """One process: prints what it counted, a line of JSON for each case."""
    torch.set_num_threads(1)
    world = World.from_environment(60)
    for precision, stage in cases:
        print(json.dumps(measure(world, precision, stage)), flush=True)
    os._exit(0)  # threads of DeepSpeed and gloo have nothing left to do


def run(cases: Sequence[tuple[str, int]], num_processes: int) -> list[dict[str, Any]]:
    """What rank 0 of so many processes counted of each (precision, stage)."""
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {"WORLD_SIZE": str(num_processes), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--rank", json.dumps(cases)]
    ranks = [
        subprocess.Popen(
            command,
            env=env | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(num_processes)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"a process failed: {outputs[0][-2000:]}")
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith("{")]


def expected(counted: dict[str, Any], precision: str, stage: int) -> list[Collective]:
    """The formula's collectives, with the type that gradients are summed in here."""
    settings = EngineConfig(precision=precision, zero_stage=stage)  # type: ignore[arg-type]
    return exchange(settings, counted["sizes"], NUM_ROUNDS, counted["sum_bytes"])


def gloo_sends(collectives: list[Collective], num_processes: int) -> float:
    """Bytes: gloo has no reduce-scatter of its own, and sums everything everywhere instead."""
    doubled = [
        dataclasses.replace(c, kind="all_reduce") if c.kind == "reduce_scatter" else c
        for c in collectives
    ]
    return sum(c.sent_bytes(num_processes) for c in doubled)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], metavar="N")
    args = parser.parse_args()
    print("| precision | stage | processes | exchanged MB | formula | sent MB | formula | off |")
    print("|-|-|-|-|-|-|-|-|")
    worst = 0.0
    for num_processes in args.processes:
        for (precision, stage), counted in zip(CASES, run(CASES, num_processes), strict=True):
            plan = expected(counted, precision, stage)
            whole, planned = (
                sum(counted["collectives"].values()),
                sum(c.num_bytes * c.times for c in plan),
            )
            sends = gloo_sends(plan, num_processes)
            off = max(abs(whole / planned - 1), abs(counted["sent"] / sends - 1))
            worst = max(worst, off)
            print(
                f"| {precision} | {stage} | {num_processes} | {whole / 1e6:.3f} "
                f"| {planned / 1e6:.3f} | {counted['sent'] / 1e6:.3f} | {sends / 1e6:.3f} "
                f"| {off:.2%} |",
                flush=True,
            )
    print(f"\nthe formula is off by {worst:.2%} at most")
    return int(worst > 0.02)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(json.loads(sys.argv[2]))
    sys.exit(main())

"""A training step on paper: FLOP, bytes, time, memory of each part and each operator, by device.

    python benchmarks/roofline.py configs/base_ls960.yaml configs/large_lv60k.yaml
    python benchmarks/roofline.py configs/large_lv60k.yaml --gpu h100 --world-size 8 --operators 20
    python benchmarks/roofline.py configs/tiny_pretrain.yaml --gpu cpu engine.precision=fp32

From the configuration alone: nothing is allocated, and nothing measured but the rates of this
machine's CPU (--gpu cpu). "Fused": chains of element-wise operators are one pass over memory, as a
compiler makes them. Prints Markdown. Predictions, not measurements.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from w2v2dist.jobs.devices import DEVICES, GIB, LINKS, Device, named
from w2v2dist.jobs.roofline import Prediction, kernel_seconds, predict
from w2v2dist.jobs.scaling import scaled
from w2v2dist.jobs.work import Config, work_of
from w2v2dist.tasks.train import read_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ["configs/base_ls960.yaml", "configs/large_lv60k.yaml"]


def table(header: str, rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the header's columns are separated by |."""
    names = [name.strip() for name in header.split("|")]
    lines = [names, ["-"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def devices_table(config: Config, devices: Sequence[Device], world_size: int) -> str:
    nodes = -(-world_size // 8)
    rows = []
    for device in devices:
        for compiled in (False, True):
            p = predict(config, device, world_size, nodes, compiled=compiled)
            rows.append(
                [
                    f"{device.name}{', fused' if compiled else ''}",
                    f"{1e3 * p.compute_seconds:.1f}",
                    f"{1e3 * p.launch_seconds:.1f}",
                    f"{1e3 * p.exposed_seconds:.1f}",
                    f"{1e3 * p.step_seconds:.1f}",
                    f"{p.mfu:.0%}",
                    f"{p.kernels:,.0f}",
                    f"{p.memory_bytes / GIB:.1f}" + ("" if p.fits else f" ({p.remedy})"),
                ]
            )
    header = "device | computing ms | launching ms | exchange seen ms | step ms | MFU | kernels"
    return table(f"{header} | memory GiB", rows)


def parts_table(plain: Prediction, joined: Prediction) -> str:
    rows = []
    for name, part in plain.parts.items():
        after = joined.parts[name]
        rows.append(
            [
                name,
                f"{part.flops / 1e12:.3f}",
                f"{part.bytes / 1e9:.2f}",
                f"{after.bytes / 1e9:.2f}",
                f"{part.kernels:,.0f}",
                f"{after.kernels:,.0f}",
                f"{1e3 * part.seconds:.2f}",
                f"{1e3 * after.seconds:.2f}",
                f"{part.bound} ({part.memory_share:.0%} of its time by memory)",
            ]
        )
    header = "part | TFLOP | GB | GB fused | kernels | fused | ms | ms fused | bound by"
    return table(header, rows)


def memory_line(p: Prediction) -> str:
    held = p.memory
    names = ("weights", "gradients", "optimizer", "kept", "transient", "buckets", "context")
    parts = ", ".join(f"{name} {getattr(held, name) / GIB:.2f}" for name in names)
    return (
        f"Memory of a process, GiB: {parts}; {held.total / GIB:.2f} in all. Exchange: "
        f"{p.sent_bytes / 1e9:.2f} GB sent by a process, {1e3 * p.exchange_seconds:.1f} ms, of "
        f"which {1e3 * p.exposed_seconds:.1f} ms are not behind the backward pass.\n"
    )


def operators_table(config: Config, device: Device, count: int) -> str:
    """The operators of one micro-batch that take longest, same ones together."""
    sums: dict[tuple[str, str, str, str], list[float]] = defaultdict(lambda: [0.0] * 4)
    for op in work_of(config, gpu=device.is_gpu).kernels:
        way = "backward" if op.backward else "forward"
        row = sums[op.part, op.name, op.kind, way]
        values = (1, op.flops, op.bytes, kernel_seconds(op, device)[0])
        row[:] = [a + b for a, b in zip(row, values, strict=True)]
    longest = sorted(sums.items(), key=lambda item: -item[1][3])[:count]
    rows = [
        [*names, f"{n:.0f}", f"{flops / 1e9:,.1f}", f"{size / 1e9:.2f}", f"{1e3 * seconds:.2f}"]
        for names, (n, flops, size, seconds) in longest
    ]
    return table("part | operator | kind | pass | times | GFLOP | GB | ms", rows)


def scaling_table(config: Config, device: Device) -> str:
    rows: dict[int, list[str]] = {}
    for one in scaled(config, device):
        row = rows.setdefault(one.num_gpus, [str(one.num_gpus), f"{one.num_slots}"])
        p = one.prediction
        row += [f"{1e3 * p.step_seconds:.1f}", f"{1e3 * p.exposed_seconds:.1f}"]
        row += [f"{one.efficiency:.0%}"]
    links = " | ".join(f"{k.name}: step ms | exchange seen ms | efficiency" for k in LINKS.values())
    return table(f"GPUs | slots | {links}", [*rows.values()])


def report(config: Config, path: str, args: argparse.Namespace) -> str:
    devices = [named(name) for name in args.gpu.split(",")]
    last = next((d for d in devices if d.name == "h100"), devices[-1])
    world_size = args.world_size or config.data.virtual_world_size
    nodes = -(-world_size // 8)
    plain = predict(config, last, world_size, nodes, compiled=False)
    joined = predict(config, last, world_size, nodes, compiled=True)
    lines = [
        f"## {path}\n",
        f"{plain.num_parameters / 1e6:.1f} M parameters, {config.data.virtual_world_size} slots of "
        f"{plain.amount:,} at most on {world_size} processes, {config.engine.precision}, ZeRO "
        f"stage {config.engine.zero_stage}; {plain.flops / 1e12:.2f} TFLOP a step and process "
        f"({plain.model_flops / 1e12:.2f} without what is computed anew).\n",
        devices_table(config, devices, world_size),
        f"By part, {last.name}, one process:\n",
        parts_table(plain, joined),
        memory_line(plain),
    ]
    if args.operators:
        lines += [f"Operators, {last.name}:\n", operators_table(config, last, args.operators)]
    if args.scaling:
        lines += [f"Scaling, {last.name}, 8 a node:\n", scaling_table(config, last)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("arguments", nargs="*", metavar="CONFIG|key=value", help=f"default: {' '.join(CONFIGS)}")
    known = ", ".join([*DEVICES, "cpu"])
    add("--gpu", default="a100,h100,h200", metavar="NAME[,NAME]", help=f"of {known}")
    add("--world-size", type=int, metavar="N", help="processes (default: one a slot)")
    add("--operators", type=int, default=0, metavar="N", help="the N longest operators too")
    add("--scaling", action="store_true", help="efficiency on 8 to 512 GPUs too")
    args = parser.parse_intermixed_args(argv)
    overrides = [text for text in args.arguments if "=" in text]
    if args.world_size is not None and args.world_size < 1:
        parser.error(f"--world-size is {args.world_size} but must be at least 1")
    if args.operators < 0:
        parser.error(f"--operators is {args.operators} but must not be negative")
    given = [text for text in args.arguments if "=" not in text]
    try:
        for path in given or CONFIGS:
            config = read_config(path if given else ROOT / path, overrides)
            print(report(config, path, args))
    except OSError as error:
        why = error.strerror
        print(f"roofline.py: {path} cannot be read ({why}): name a YAML file", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"roofline.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

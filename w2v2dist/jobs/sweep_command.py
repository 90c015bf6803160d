"""`launch/submit.py --sweep`: what it prints, checks and starts."""

import argparse
import sys
from collections.abc import Callable

from w2v2dist.data.index_writer import check_place
from w2v2dist.jobs.cluster import ClusterConfig, Executor, check_sbatch, refusal
from w2v2dist.jobs.local import processes_here
from w2v2dist.jobs.sweep import Sweep, fitting, make_array, missing, read_sweep, submit
from w2v2dist.jobs.sweep_here import run_here
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.training.lock import InUseError, locked


def run(
    args: argparse.Namespace,
    cluster: ClusterConfig | None,
    nodes: tuple[int, int],
    minutes_of: Callable[[str], int],
) -> int:
    """Train the cells of a sweep's file here (without `cluster`), or submit them. Exit status as
    submit.py's. Raises ConfigError or ValueError."""
    if args.at_once is not None and args.at_once < 1:
        raise ValueError(f"--at-once is {args.at_once} but must be at least 1")
    sweep = read_sweep(args.config, args.overrides)
    check_place(sweep.folder, "run_dir")
    if cluster is None:
        return _here(sweep, args)
    low, high = nodes
    cluster = fitting(sweep, cluster)
    shown = str(low) if low == high else f"{low}-{high}"
    array = make_array(sweep, cluster, shown, minutes_of(cluster.time))
    for cell in sweep.cells:
        VirtualRanks(cell.config.data.virtual_world_size).check(high * cluster.num_tasks_per_node)
    if args.dry_run:
        print(*_plan(sweep), sep="\n")
        print(f"\n# the sbatch script, which gets --array\n{array.script()}")
        print("\nnothing was submitted (--dry-run)")
        return 0
    check_sbatch()
    try:
        with locked(sweep.folder):  # two at once would both find the same cells missing
            return _submit(sweep, array, args.at_once)
    except InUseError as error:
        return _in_use(error)


def _submit(sweep: Sweep, array: Executor, at_once: int | None) -> int:
    todo = missing(sweep)
    try:
        said = submit(sweep, array, at_once, todo)
    except Exception as error:  # submitit wraps what sbatch said in an exception of its own
        print(f"submit.py: sbatch refused the array: {refusal(error)}", file=sys.stderr)
        return 1
    print(*said, sep="\n")
    return 0


def _in_use(error: InUseError) -> int:
    print(f"submit.py: {error}; the same command goes on then", file=sys.stderr)
    return 1


def _plan(sweep: Sweep) -> list[str]:
    steps = sum(cell.config.loop.max_steps for cell in sweep.cells)
    finished = sum(cell.is_finished for cell in sweep.cells)
    return [
        f"sweep           {sweep.folder}",
        f"cells           {len(sweep.cells)}, {finished} finished, {steps:,} steps in all",
        *(f"  {cell.name}" for cell in sweep.cells),
    ]


def _here(sweep: Sweep, args: argparse.Namespace) -> int:
    import torch

    fewest = min(cell.config.data.virtual_world_size for cell in sweep.cells)
    num_processes = processes_here(args.processes, fewest)
    for cell in sweep.cells:
        VirtualRanks(cell.config.data.virtual_world_size).check(num_processes)
    try:
        with locked(sweep.folder):
            return run_here(sweep, num_processes, args.at_once or 1, torch.cuda.device_count())
    except InUseError as error:
        return _in_use(error)

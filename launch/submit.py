"""Start a training, or all stages of a recipe, on a Slurm cluster or here; the same command again
resumes it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError, from_dict, read_yaml, to_yaml

EPILOG = """examples:
  # what 16 nodes of 8 GPUs would do, and the sbatch script, without submitting
  python launch/submit.py --nodes 16 configs/large_lv60k.yaml --dry-run
  # submit; 4 nodes will do if 8 are not free, also after a node fails
  python launch/submit.py --nodes 4-8 --cluster launch/clusters/generic.yaml configs/base_ls960.yaml
  # here, on all GPUs (on the CPU: 2 processes)
  python launch/submit.py --local configs/tiny_pretrain.yaml data.train=DIR data.valid=DIR
  # everything behind a table of the paper: what it needs; here; as jobs that wait for each other
  python launch/submit.py --recipe configs/recipes/lv60k.yaml --dry-run
  python launch/submit.py --recipe configs/recipes/tiny.yaml --local
  python launch/submit.py --recipe configs/recipes/librispeech_base.yaml corpora.librispeech=DIR
  # a run for each cell of a grid, as one array job; here, two at a time
  python launch/submit.py --sweep configs/unsupervised/sweep_v1.yaml data.train=DIR data.text=DIR
  python launch/submit.py --local --at-once 2 --sweep configs/unsupervised/sweep_v1.yaml
  # which settings are fastest on this machine's GPUs: some minutes of measuring
  python launch/submit.py --autotune configs/large_lv60k.yaml

--autotune tries, on random audio and within memory: smaller micro-batches and more of them (the
same audio a step; for a new run only), model.activation_checkpointing, engine.compile and
engine.zero_stage. It prints overrides to paste and writes RUN/autotune.yaml to use as CONFIG.

A job that is preempted, reaches its time limit or loses a node is requeued and resumes by itself;
one that loses a process goes on in its allocation (docs/resume.md).
Submitting the same run folder again resumes it too; a second job waits for the first.
Logs: RUN/logs/JOB_RANK_log.out.
"""
# Slurm's words for a job that is over
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 submitted or finished, 1 failed, 2 a user's mistake, 75 saved on a signal, 130
    Ctrl-C before anything was at work."""
    args = parse_args(argv)
    try:
        return _run(args)
    except (ConfigError, ValueError) as error:
        print(f"submit.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while it was preparing; trainings and stages end by themselves
        print(f"\nsubmit.py: interrupted; {args.again} goes on", file=sys.stderr)
        return 130


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; of --recipe FILE the file is `config`."""
    parser, given = make_parser(), sys.argv[1:] if argv is None else argv
    args = parser.parse_intermixed_args(given)
    args.again = shlex.join(["python", "launch/submit.py", *given])
    if args.recipe is not None:  # then the first word is a setting
        args.overrides = [word for word in (args.config, *args.overrides) if word is not None]
        args.config = args.recipe
    if args.config is None:
        parser.error("the following arguments are required: CONFIG, or --recipe FILE")
    for name in ("autotune_minutes", "output"):
        if getattr(args, name) is not None and not args.autotune:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} is of --autotune, which is not given: leave it out")
    return args


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="launch/submit.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="YAML file of the training, or of a recipe")
    add("overrides", nargs="*", metavar="key=value", help="settings that win over CONFIG")
    add("--recipe", metavar="FILE", help="a recipe, or its folder, in place of CONFIG")
    add("--nodes", default="1", metavar="N|MIN-MAX", help="number of nodes (default: 1)")
    add("--gpus-per-node", type=int, metavar="N", help="default: the profile's, 8; 0: no GPUs")
    add("--tasks-per-node", type=int, metavar="N", help="processes per node (default: one per GPU)")
    add("--partition", metavar="P", help="Slurm partition (default: the profile's)")
    add("--time", metavar="HH:MM:SS|MINUTES", help="limit of one allocation (default: 24:00:00)")
    add("--cluster", metavar="FILE", help="profile of a cluster: see launch/clusters/generic.yaml")
    add("--follow", action="store_true", help="print rank 0's log until the job is over")
    add(
        "--processes",
        type=int,
        metavar="N",
        help="here (default: one per GPU; CPU: 2, --autotune 1)",
    )
    add("--sweep", action="store_true", help="CONFIG is a sweep: a run for each cell of its grid")
    add("--at-once", type=int, metavar="N", help="cells of a sweep (default: here 1, Slurm's all)")
    add("--autotune-minutes", type=float, metavar="M", help="limit (default: 10)")
    add("--output", type=Path, metavar="FILE", help="of --autotune (default: RUN/autotune.yaml)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run on this machine, submit nothing")
    where.add_argument("--autotune", action="store_true", help="find the fastest settings here")
    where.add_argument(
        "--dry-run", action="store_true", help="print the plan and the sbatch script"
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    from w2v2dist.data.index_writer import check_place
    from w2v2dist.jobs import cluster as slurm
    from w2v2dist.recipes.recipe import is_recipe
    from w2v2dist.runtime.distributed import VirtualRanks
    from w2v2dist.runtime.files import unwritable
    from w2v2dist.tasks.train import read_config  # late: --help need not wait for torch

    if args.sweep:
        return _sweep(args)
    if args.recipe is not None or is_recipe(Path(args.config)):
        from w2v2dist.jobs import recipe_command

        return recipe_command.run(args, lambda: read_cluster(args), args.again, refused)
    config = read_config(args.config, args.overrides)
    run_dir = Path(config.run_dir).absolute()
    check_place(run_dir, "run_dir")
    if not args.dry_run and (why := unwritable(run_dir / "config.yaml")):
        raise ConfigError(f"run_dir is {config.run_dir}: {why}")
    if args.autotune:
        return _autotune(args)
    if args.local:
        return _run_local(args, config, run_dir)
    low, high = parse_nodes(args.nodes)
    cluster = read_cluster(args)
    if config.data.virtual_world_size == 1:
        cluster = slurm.of_one_process(cluster)
    VirtualRanks(config.data.virtual_world_size).check(high * cluster.num_tasks_per_node)
    nodes = str(low) if low == high else f"{low}-{high}"
    executor = slurm.make_executor(cluster, run_dir, nodes, slurm.minutes_of(cluster.time))
    if args.dry_run:
        _print_plan(config, low, high, cluster)
        print(f"\n# the sbatch script\n{executor.script()}\n\nnothing was submitted (--dry-run)")
        return 0
    slurm.check_sbatch()
    try:
        job = executor.submit(slurm.TrainJob(str(snapshot(config, run_dir))))
    except Exception as error:  # submitit wraps what sbatch said in an exception of its own
        print(f"submit.py: sbatch refused the job: {slurm.refusal(error)}", file=sys.stderr)
        return 1
    log = job.paths.stdout
    print(
        f"submitted job {job.job_id}: {nodes} nodes x {cluster.num_tasks_per_node} processes",
        f"run  {run_dir}",
        f"log  {log}",
        sep="\n",
    )
    return follow(job.job_id, log) if args.follow else 0


def refused(words: Sequence[str]) -> str:
    """What `w2v2dist` says against the words of one of its commands; "" where it takes them."""
    from w2v2dist.cli import parse

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parse([*words])
    except SystemExit as end:
        return said.getvalue().strip().rpartition("\n")[2] if end.code else ""
    return ""


def parse_nodes(text: str) -> tuple[int, int]:
    """ "8" to (8, 8), "8-16" to (8, 16). Raises ValueError."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise ValueError(
            f"--nodes is {text!r} but must be N or MIN-MAX, 1 <= MIN <= MAX: for example 8 or 12-16"
        )
    return low, high


def read_cluster(args: argparse.Namespace) -> Any:
    """The profile of --cluster, or the defaults, under the command line. Raises ConfigError."""
    from w2v2dist.jobs.cluster import ClusterConfig

    cluster = from_dict(ClusterConfig, read_yaml(args.cluster) if args.cluster else {})
    names = ("gpus_per_node", "tasks_per_node", "partition", "time")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(cluster, **given)


def snapshot(config: Any, run_dir: Path) -> Path:
    """Write the resolved configuration: editing CONFIG while the job waits must not change it."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"submitted-{time.strftime('%Y%m%d-%H%M%S')}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def _print_plan(config: Any, low: int, high: int, cluster: Any) -> None:
    from w2v2dist.jobs.plan import make_plan

    if config.task == "unsupervised":
        steps, rows = config.loop.max_steps, config.data.batch_size
        print(f"run             {config.run_dir}")
        print(f"task            unsupervised, {steps:,} steps of {rows} utterances, one process")
        return
    device = cluster.device()
    plan = make_plan(config, high, cluster.num_tasks_per_node, device)
    print(f"run             {config.run_dir}", *plan.lines(), sep="\n")
    if low < high:
        least = make_plan(config, low, cluster.num_tasks_per_node, device).prediction
        print(
            f"{f'with {low} nodes':<16}{least.num_rounds} slots per GPU, "
            f"{least.step_seconds:.2f} s a step (predicted); the same batch and the same results"
        )


def _run_local(args: argparse.Namespace, config: Any, run_dir: Path) -> int:
    from w2v2dist.jobs.local import processes_here, run_local
    from w2v2dist.runtime.distributed import VirtualRanks

    num_processes = processes_here(args.processes, config.data.virtual_world_size)
    VirtualRanks(config.data.virtual_world_size).check(num_processes)
    return run_local([str(snapshot(config, run_dir))], run_dir / "logs", num_processes)


def _sweep(args: argparse.Namespace) -> int:
    from w2v2dist.jobs import sweep_command
    from w2v2dist.jobs.cluster import minutes_of

    if args.recipe is not None:
        raise ValueError(
            "--sweep is of a grid of one training, and --recipe names a recipe: one only"
        )
    if args.autotune:
        raise ValueError("--sweep and --autotune cannot be given together: tune one CONFIG first")
    cluster = None if args.local else read_cluster(args)
    return sweep_command.run(args, cluster, parse_nodes(args.nodes), minutes_of)


def _autotune(args: argparse.Namespace) -> int:
    from w2v2dist.jobs.autotune import Tuning, autotune

    return autotune(
        Tuning(
            config_path=args.config,
            overrides=tuple(args.overrides),
            num_processes=args.processes,
            minutes=10.0 if args.autotune_minutes is None else args.autotune_minutes,
            output=args.output,
        )
    )


def follow(job_id: str, log: Path, poll_s: float = 2.0) -> int:
    """Print the log until the job is over: 0 if it completed, else 1. Ctrl-C stops only this."""
    position, state, told = 0, "", ""
    try:
        while state not in ENDED:
            command = ["scontrol", "show", "job", "--oneliner", job_id]
            shown = subprocess.run(command, capture_output=True, text=True, check=False)
            match = re.search(r"JobState=(\w+)", shown.stdout)
            gone = "Invalid job id" in shown.stderr
            state = match[1] if match else ("COMPLETED" if gone else state)
            if state != told:
                print(f"[job {job_id}: {state}]", flush=True)
                told = state
            if log.exists():
                with log.open("rb") as file:
                    file.seek(position)
                    sys.stdout.write(file.read().decode("utf-8", errors="replace"))
                    sys.stdout.flush()
                    position = file.tell()
            if state not in ENDED:
                time.sleep(poll_s)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; stop it with: scancel {job_id}")
        return 0
    return 0 if state == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())

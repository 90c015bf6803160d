"""Training without labels on made languages: several seeds, the run that is chosen without labels
beside the best, the control on another language's text, and of level 4 a stride of 1.

    python benchmarks/unsupervised.py --level 2 --output /tmp/level_2 --seeds 0 1 2 3 4
    python benchmarks/unsupervised.py --level 3 --output /tmp/level_3 losses.penalty_weight=2

Every run is `w2v2dist train` on one core; what is finished is kept, so the same command goes on.
Prints Markdown, for a page under benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import machine
from w2v2dist.cli import main as w2v2dist
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.unsupervised.select import read_cells

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seeds alone."""

    name: str
    overrides: tuple[str, ...]
    text: str = "text"


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--level", type=int, required=True, choices=(2, 3, 4))
    add("--output", type=Path, required=True, help="language and runs")
    add("--language-seed", type=int, default=0)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--control-seeds", type=int, nargs="+", default=[0, 1])
    add("--at-once", type=int, default=1, help="runs at a time, each on one core")
    add("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    return parser.parse_intermixed_args()


def train(args: argparse.Namespace, group: Group, seed: int) -> None:
    """One run, unless it is finished."""
    folder, data = args.output / group.name / f"seed_{seed}", args.output / "language"
    names = [f"data.{name}={data / name}" for name in ("train", "valid")]
    command = [sys.executable, "-m", "w2v2dist.cli", "train"]
    command += [f"configs/unsupervised/synthetic_{args.level}.yaml", *names]
    command += [f"data.text={data / group.text}", f"run_dir={folder}", f"seed={seed}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"seed_{seed}.log").open("a") as log:
        code = subprocess.run(
            [*command, *args.overrides, *group.overrides],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        ).returncode
    if code:
        raise SystemExit(f"{folder} failed ({code}): see {log.name}")


def chosen(folder: Path) -> dict[str, object]:
    """What `unsupervised select` says of a group."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        w2v2dist(["unsupervised", "select", str(folder), "--json"])
    return dict(json.loads(out.getvalue()))


def rates(folder: Path) -> dict[str, dict[int, float]]:
    """The phone error rate at each validation of each run."""
    found = {}
    for cell in read_cells(folder):
        records = read_jsonl(cell.folder / "metrics.jsonl")
        found[cell.name] = {r["step"]: r["valid/per"] for r in records if "valid/per" in r}
    return found


def cpu_minutes(folder: Path) -> float:
    """The mean of the runs, of what their steps took."""
    totals = []
    for path in folder.glob("*/metrics.jsonl"):
        totals.append(sum(r["seconds"] for r in read_jsonl(path) if "loss" in r) / 60)
    return sum(totals) / max(1, len(totals))


def page(args: argparse.Namespace, groups: list[Group]) -> None:
    """Print what came out."""
    about = machine()
    print(f"# Training without labels on a made language, level {args.level} (CPU)\n")
    print(f"{about['date']} · {about['cpu']}, {about['cores']} cores · commit {about['commit']} · ")
    print(f"`{' '.join(['python', *sys.argv])}`\n")
    print("PER in %, of the checkpoint that has the best score of its run.\n")
    print("| runs | PER by seed | chosen by the score | by the paper's steps | minutes a run |")
    print("|-|-|-|-|-|")
    verdicts = []
    for group in groups:
        folder = args.output / group.name
        said, by_run = chosen(folder), rates(folder)
        own = {
            cell.name: by_run[cell.name][cell.best.step] for cell in read_cells(folder) if cell.best
        }
        row = [group.name, " · ".join(f"{100 * own[name]:.1f}" for name in sorted(own))]
        for rule in ("score", "paper"):
            path = said["chosen"][rule]  # type: ignore[index]
            step = path and int(Path(path).name.removeprefix("step_"))
            run = path and Path(path).parents[1].name
            row.append(f"{100 * by_run[run][step]:.1f} ({run})" if path else "none")
        print(f"| {' | '.join([*row, f'{cpu_minutes(folder):.1f}'])} |")
        verdicts.append((group.name, said["verdict"]))
    print("\nWhat `unsupervised select` says:\n")
    for name, lines in verdicts:
        print(f"- {name}: {' '.join(lines)}")  # type: ignore[arg-type]


def main() -> None:
    """Train what is missing and print the page."""
    args = parse_args()
    language = ["unsupervised", "synthetic", "--level", str(args.level)]
    language += ["--seed", str(args.language_seed), "--output", str(args.output / "language")]
    with contextlib.redirect_stdout(io.StringIO()):
        if w2v2dist(language):
            raise SystemExit("the language could not be made")
    groups = [Group(name=f"level_{args.level}", overrides=())]
    if args.level == 4:
        groups.append(Group(name="stride_1", overrides=("model.generator.stride=1",)))
    groups.append(Group(name="control", overrides=(), text="other"))
    jobs = [
        (group, seed)
        for group in groups
        for seed in (args.control_seeds if group.name == "control" else args.seeds)
    ]
    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(lambda job: train(args, *job), jobs))
    page(args, groups)


if __name__ == "__main__":
    main()

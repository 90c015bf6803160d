"""Four processes, killed, resumed with two, killed, resumed with three: is it still the same run?

    python benchmarks/elastic.py --shards FOLDER --output FOLDER [--results FILE.md]

FOLDER is what shards/build.py wrote. The tiny model trains once on one process without a break, and
then under ZeRO 1, 2 and 3 with `kill -9` of all processes, on 4, 2 and 3 of them. The page shows
commands, events.jsonl and metrics.jsonl side by side, and whether the samples are the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from w2v2dist.runtime.logging import read_jsonl

ROOT = Path(__file__).parents[1]
CONFIG = "configs/tiny_pretrain.yaml"
SLOTS, STEPS, SAVE_EVERY = 12, 30, 4
KILLS = (9, 19)  # the first step logged after which all processes are killed
SIZES = (4, 2, 3)


def command(arguments: argparse.Namespace, run_dir: Path, processes: int, zero: int) -> list[str]:
    """One training on this machine through the same job code as on a cluster."""
    return [
        *("launch/submit.py", "--local", "--processes", str(processes), CONFIG),
        *(f"run_dir={run_dir}", f"data.train={arguments.shards}", "data.valid=null"),
        *(f"data.virtual_world_size={SLOTS}", "data.max_samples_per_slot=48_000"),
        *(f"loop.max_steps={STEPS}", f"loop.save_every={SAVE_EVERY}", "loop.log_every=1"),
        *("model.layer_drop=0.2", "model.dropout=0.1", f"engine.zero_stage={zero}"),
    ]


def train(arguments: list[str], run_dir: Path, kill_after: int | None, log: Path) -> None:
    """Run to the end, or until `kill_after` is logged and then kill -9 every process."""
    with log.open("a") as file:
        started = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        while kill_after is not None and started.poll() is None:
            records = read_jsonl(run_dir / "metrics.jsonl")
            if records and records[-1]["step"] >= kill_after:
                tree = psutil.Process(started.pid).children(recursive=True)
                for process in [*tree, psutil.Process(started.pid)]:
                    process.kill()
                psutil.wait_procs(tree, 30)
            time.sleep(0.05)
        code = started.wait()
    if kill_after is None and code != 0:
        raise SystemExit(f"the training ended with status {code}: see {log}")


def losses(run_dir: Path) -> dict[int, dict[str, Any]]:
    """The last record of every step."""
    return {r["step"]: r for r in read_jsonl(run_dir / "metrics.jsonl")}


def samples(run_dir: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What every slot of every step used, over all processes; what was trained again must be what
    was trained before."""
    out: dict[tuple[int, int], dict[str, Any]] = {}
    for path in sorted(run_dir.glob("logs/samples-*.jsonl")):
        for record in read_jsonl(path):
            before = out.setdefault((record["step"], record["slot"]), record)
            if before != record:
                raise SystemExit(f"step {record['step']} used {before}, then {record}")
    return out


def resume_seconds(run_dir: Path) -> list[str]:
    """From each attempt's first event to its first step."""
    steps = [r["time"] for r in read_jsonl(run_dir / "metrics.jsonl")]
    begun = [e for e in read_jsonl(run_dir / "events.jsonl") if e["event"] in ("start", "resumed")]
    return [f"{min(t for t in steps if t > e['time']) - e['time']:.2f}" for e in begun]


def main() -> int:
    """Train, kill, resume, compare, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--results", type=Path, help="Markdown page to write (default: OUTPUT/results.md)"
    )
    arguments = parser.parse_args()
    arguments.shards, output = arguments.shards.absolute(), arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    log = output / "console.log"
    whole = output / "whole"
    train(command(arguments, whole, 1, 1), whole, None, log)
    expected, plan = losses(whole), samples(whole)
    moved: dict[int, dict[int, dict[str, Any]]] = {}
    parts = [
        "# Elastic: 4 processes, killed, resumed with 2, killed, resumed with 3",
        "",
        f"{datetime.date.today()} · {os.cpu_count()} CPU cores, gloo, fp32 · "
        "`python benchmarks/elastic.py --shards FOLDER --output FOLDER`",
        "",
        f"{SLOTS} slots, {STEPS} steps, a checkpoint every {SAVE_EVERY}, dropout 0.1, LayerDrop "
        f"0.2. `kill -9` of every process once steps {KILLS[0]} and {KILLS[1]} are logged; the "
        "same command continues.",
    ]
    for zero in (1, 2, 3):
        run_dir = output / f"zero_{zero}"
        parts += ["", f"## ZeRO {zero}", "", "```"]
        for size, kill in zip(SIZES, (*KILLS, None), strict=True):
            arguments_ = command(arguments, run_dir, size, zero)
            shown = [*arguments_[:5], "run_dir=RUN", "…", arguments_[-1]]
            parts.append(f"$ python {' '.join(shown)}" + ("   # kill -9" if kill else ""))
            before = len(read_jsonl(run_dir / "events.jsonl"))
            train(arguments_, run_dir, kill, log)
            events = read_jsonl(run_dir / "events.jsonl")[before:]
            hidden = ("time", "seconds", "pause_seconds", "best", "num_parameters")
            kept = [{k: v for k, v in e.items() if k not in hidden} for e in events]
            parts += [json.dumps(e) for e in kept if e["event"] != "saved"]
        moved[zero] = losses(run_dir)
        same = samples(run_dir) == plan
        worst = max(
            abs(moved[zero][s]["loss"] - expected[s]["loss"]) / expected[s]["loss"]
            for s in expected
        )
        parts += [
            "```",
            "",
            f"Samples, crops and masks of all {len(plan)} micro-batches: "
            f"{'the same' if same else '**OTHERS**'}. Largest relative difference of a loss: "
            f"{worst:.1e}. Seconds from the start of an attempt to its first step: "
            f"{', '.join(resume_seconds(run_dir))}.",
        ]
        if not same or worst > 1e-5:
            raise SystemExit("\n".join([*parts, "this is another run"]))
    parts += [
        "",
        "## metrics.jsonl side by side: loss (processes)",
        "",
        "| step | one process, no break | ZeRO 1 | ZeRO 2 | ZeRO 3 |",
        "|-|-|-|-|-|",
        *(
            f"| {step} | {record['loss']:.7f} | "
            + " | ".join(f"{m[step]['loss']:.7f} ({m[step]['world_size']})" for m in moved.values())
            + " |"
            for step, record in sorted(expected.items())
        ),
        "",
    ]
    page = arguments.results or output / "results.md"
    page.write_text("\n".join(parts))
    print(page.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Several seeds of `make demo`, and what they say together.

    python benchmarks/demo.py --output FOLDER [--seeds 1 2 3] [options of launch/demo.py]

Each seed's runs and report go to FOLDER/seed_N (a finished one is kept), speech and shards are
shared. Prints a Markdown table: error rates on the test by start and decoder for each seed, their
means, and what pre-training is worth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from launch.demo import STARTS, fast_precision

ROOT = Path(__file__).resolve().parents[1]
DECODERS = ("greedy", "4-gram")


def run_seed(output: Path, seed: int, options: list[str]) -> Path:
    """Run the demo with this seed where it has not run; its folder."""
    kept = output / f"seed_{seed}"
    if kept.exists():
        return kept
    command = [sys.executable, str(ROOT / "launch/demo.py"), "--seed", str(seed)]
    started = time.monotonic()
    subprocess.run([*command, "--output", str(output / "demo"), *options], check=True, cwd=ROOT)
    made = output / f".seed_{seed}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    shutil.move(output / "demo/runs", made / "runs")
    shutil.copy(output / "demo/report.html", made)
    (made / "minutes.json").write_text(json.dumps((time.monotonic() - started) / 60))
    return made.rename(kept)


def rates(folder: Path, start: str, decoder: str) -> tuple[float, float]:
    """Letter and word errors in %."""
    path = folder / "runs" / STARTS[start] / "evaluations" / decoder / "evaluation.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return 100 * found["cer"], 100 * found["wer"]


def page(folders: dict[int, Path]) -> str:
    """The table and the sentences below it."""
    seeds = " | ".join(f"seed {seed}" for seed in folders)
    lines = [f"| start | decoder | {seeds} | mean |", f"|-|-{'|-' * len(folders)}|-|"]
    mean: dict[tuple[str, str], tuple[float, float]] = {}
    for start in STARTS:
        for decoder in DECODERS:
            found = [rates(folder, start, decoder) for folder in folders.values()]
            letters, words = map(statistics.mean, zip(*found, strict=True))
            mean[start, decoder] = letters, words
            cells = " | ".join(f"{c:.1f} / {w:.1f}" for c, w in [*found, (letters, words)])
            lines.append(f"| {start} | {decoder} | {cells} |")
    first, second = (mean[start, "greedy"][0] for start in STARTS)
    words = mean["pre-trained", "4-gram"][1]
    took = ", ".join(
        f"{json.loads((folder / 'minutes.json').read_text()):.1f}" for folder in folders.values()
    )
    return "\n".join(
        [
            "Letter / word errors on the test in %.",
            "",
            *lines,
            "",
            f"- Pre-trained against random start, letter errors, greedy: {first:.1f} % against "
            f"{second:.1f} %, {100 * (1 - first / second):.1f} % fewer.",
            f"- With the 4-gram: {words:.1f} % word errors.",
            f"- Minutes in all: {took} (precision: {fast_precision()}).",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args, options = parser.parse_known_args()
    folders = {seed: run_seed(args.output, seed, options) for seed in args.seeds}
    print(page(folders))


if __name__ == "__main__":
    main()

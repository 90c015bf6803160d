"""A trial on one CPU: pre-train on all audio at hand, fine-tune on spoken digits, against random
weights.

    python benchmarks/learning/trial.py --speech FOLDER --output FOLDER [--seeds 1 2 3]

FOLDER holds SET/SPLIT/SPEAKER/... in LibriSpeech's and TIMIT's layouts, with a set `digits` whose
chapters 1 and 3 are strings of five digits and 2 and 4 single digits. For each seed: pre-training
on every `train` and `unlabelled` split; fine-tuning on single digits, then on strings, once from
the pre-trained and once from random weights with the same budget; error rates on the unseen test
speaker. Finished runs are kept: run it again to continue.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

from w2v2dist.runtime.logging import read_jsonl

ROOT = Path(__file__).parents[2]
CHANCE_BITS = math.log2(101)
# Letter errors in % of the first model tried (0.5 M parameters, 400 CPU seconds, no pre-training)
FIRST_ATTEMPT = {"single": 26.0, "strings": 30.0}


def run(arguments: list[str], log: Path) -> None:
    """Run a command with one CPU thread. Raises CalledProcessError."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        subprocess.run(
            arguments, check=True, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )


def build_shards(speech: Path, output: Path) -> None:
    """Shards of the pre-training audio and of the digits, single and in strings."""
    splits = [p for p in sorted(speech.glob("*/*")) if p.name in ("train", "unlabelled")]
    wanted: dict[str, list[Path]] = {"pretrain": splits}
    wanted["pretrain_valid"] = [speech / "librispeech" / "valid"]
    for split in ("train", "valid", "test"):
        speakers = sorted((speech / "digits" / split).iterdir())
        for name, chapters in (("single", "24"), ("strings", "13")):
            folders = [s / c for s in speakers for c in chapters if (s / c).is_dir()]
            wanted[f"{name}_{split}"] = folders
    for name, folders in wanted.items():
        inputs = [argument for folder in folders for argument in ("--input", str(folder))]
        target = ["--output", str(output / "shards" / name), "--shard-mb", "64", "--workers", "2"]
        run([sys.executable, "shards/build.py", *inputs, *target], output / "shards.log")


def train_once(config: str, output: Path, name: str, overrides: list[str]) -> Path:
    """Train a run (or continue it); returns its folder."""
    folder = output / "runs" / name
    command = [sys.executable, "-m", "w2v2dist.cli", "train", config, f"run_dir={folder}"]
    run([*command, *overrides], output / f"{name}.log")
    return folder


def one_start(arguments: argparse.Namespace, seed: int, start: str) -> dict[str, dict[str, float]]:
    """Error rates in % on both test sets of one start, `pretrained` or `random`."""
    output, shards = arguments.output, arguments.output / "shards"
    source, freeze_steps = "null", 0
    if start == "pretrained":
        folder = train_once(
            "configs/tiny_pretrain.yaml",
            output,
            f"pretrain_{seed}",
            [
                f"data.train={shards / 'pretrain'}",
                f"data.valid={shards / 'pretrain_valid'}",
                f"seed={seed}",
                f"loop.max_steps={arguments.pretrain_steps}",
            ],
        )
        source, freeze_steps = str(folder), arguments.freeze_steps
    results: dict[str, dict[str, float]] = {}
    for stage, steps in (("single", arguments.single_steps), ("strings", arguments.string_steps)):
        folder = train_once(
            "configs/tiny_finetune.yaml",
            output,
            f"{stage}_{start}_{seed}",
            [
                f"data.train={shards / f'{stage}_train'}",
                f"data.valid={shards / f'{stage}_valid'}",
                "data.virtual_world_size=1",
                "loop.validate_every=250",
                "loop.save_every=250",
                f"seed={seed}",
                f"pretrained={source}",
                f"freeze_steps={freeze_steps}",
                f"loop.max_steps={steps}",
            ],
        )
        source, freeze_steps = str(folder), 0
        evaluate = [sys.executable, "-m", "w2v2dist.cli", "evaluate", str(folder)]
        evaluate += ["--output", str(folder / "test")]
        run([*evaluate, "--data", str(shards / f"{stage}_test")], output / "evaluate.log")
        scores = json.loads((folder / "test" / "evaluation.json").read_text())
        results[stage] = {k: 100 * scores[k] for k in ("cer", "wer")}
    return results


def seconds(folder: Path) -> float:
    """Wall time of a run's steps, without validation and saving."""
    return sum(r.get("seconds", 0.0) for r in read_jsonl(folder / "metrics.jsonl"))


def learning_curve(arguments: argparse.Namespace, stage: str) -> list[str]:
    """Rows of a table: mean letter errors in % on the validation recordings by update."""
    curves: dict[str, dict[int, list[float]]] = {"pretrained": {}, "random": {}}
    for start, curve in curves.items():
        for seed in arguments.seeds:
            folder = arguments.output / "runs" / f"{stage}_{start}_{seed}"
            for record in read_jsonl(folder / "metrics.jsonl"):
                if "valid/cer" in record:
                    curve.setdefault(record["step"], []).append(100 * record["valid/cer"])
    steps = sorted(curves["random"])
    return [
        f"| {stage} | {' | '.join(str(step) for step in steps)} |",
        f"|-{'|-' * len(steps)}|",
        *(
            f"| {start} | {' | '.join(f'{statistics.mean(curve[step]):.1f}' for step in steps)} |"
            for start, curve in curves.items()
        ),
        "",
    ]


def results_page(
    arguments: argparse.Namespace, results: dict[tuple[int, str], dict[str, dict[str, float]]]
) -> str:
    """Markdown: one row a test set and start, and what that shows."""
    rows, means = [], {}
    for stage in ("single", "strings"):
        for start in ("pretrained", "random"):
            cells = [results[seed, start][stage] for seed in arguments.seeds]
            mean = {k: sum(c[k] for c in cells) / len(cells) for k in ("cer", "wer")}
            means[stage, start] = mean["cer"]
            each = " · ".join(f"{c['cer']:.1f} / {c['wer']:.1f}" for c in cells)
            rows.append(
                f"| {stage} | {start} | {each} | **{mean['cer']:.1f} / {mean['wer']:.1f}** |"
            )
    pretraining = []
    for seed in arguments.seeds:
        folder = arguments.output / "runs" / f"pretrain_{seed}"
        records = read_jsonl(folder / "metrics.jsonl")
        valid = [r for r in records if "valid/contrastive_loss" in r][-1]
        pretraining.append(
            f"| {seed} | {valid['valid/contrastive_loss']:.3f} | {valid['valid/accuracy']:.3f} | "
            f"{valid['valid/code_perplexity']:.1f} | "
            f"{seconds(folder):.0f} |"
        )
    verdict = []
    for stage, first in FIRST_ATTEMPT.items():
        pre, scratch = means[stage, "pretrained"], means[stage, "random"]
        wins = sum(
            results[seed, "pretrained"][stage]["cer"] < results[seed, "random"][stage]["cer"]
            for seed in arguments.seeds
        )
        verdict.append(
            f"- {stage}: the pre-trained start has {pre:.1f} % letter errors, the random one "
            f"{scratch:.1f} % with the same fine-tuning; better with {wins} of "
            f"{len(arguments.seeds)} seeds. The first attempt, not pre-trained, had {first:.0f} %."
        )
    runs, first_seed = arguments.output / "runs", arguments.seeds[0]
    budget = [
        f"{start} {seconds(runs / f'{stage}_{start}_{first_seed}'):.0f}"
        for stage in FIRST_ATTEMPT
        for start in ("pretrained", "random")
    ]
    return "\n".join(
        [
            "# Trial: pre-training on an hour of speech, fine-tuning on digits (CPU)",
            "",
            f"{datetime.date.today()} · {os.cpu_count()} CPU cores, one thread a run · seeds "
            f"{arguments.seeds} · "
            f"`python benchmarks/learning/trial.py --speech FOLDER --output FOLDER "
            f"--pretrain-steps {arguments.pretrain_steps} "
            f"--single-steps {arguments.single_steps} --string-steps {arguments.string_steps} "
            f"--freeze-steps {arguments.freeze_steps}`",
            "",
            f"## Pre-training: validation on LibriSpeech speakers not trained on (chance: "
            f"{CHANCE_BITS:.3f} bits)",
            "",
            "| seed | contrastive loss, bits | accuracy | code perplexity | wall seconds |",
            "|-|-|-|-|-|",
            *pretraining,
            "",
            "## Fine-tuning: letter / word errors in % on the unseen speaker, greedy",
            "",
            "| test set | start | seeds | mean |",
            "|-|-|-|-|",
            *rows,
            "",
            *verdict,
            "",
            "## How fast it learns: mean letter errors in % on other recordings of the training "
            "speakers, by update",
            "",
            *learning_curve(arguments, "single"),
            *learning_curve(arguments, "strings"),
            f"Seconds of fine-tuning (seed {first_seed}; single, then strings): "
            f"{', '.join(budget)}.",
            "",
        ]
    )


def main() -> int:
    """Run the trial and write the results page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pretrain-steps", type=int, default=1200)
    parser.add_argument("--single-steps", type=int, default=1300)
    parser.add_argument("--string-steps", type=int, default=600)
    parser.add_argument("--freeze-steps", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (one CPU thread each)")
    parser.add_argument(
        "--results", type=Path, help="Markdown page to write (default: OUTPUT/results.md)"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    build_shards(arguments.speech, arguments.output)
    runs = [(seed, start) for seed in arguments.seeds for start in ("pretrained", "random")]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        scores = list(pool.map(lambda run: one_start(arguments, *run), runs))
    page = results_page(arguments, dict(zip(runs, scores, strict=True)))
    (arguments.results or arguments.output / "results.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Does it learn as the paper says? A small study on real speech.

    python benchmarks/learning/study.py --speech FOLDER --output FOLDER [--results FILE.md]

FOLDER as for benchmarks/learning/trial.py. Every arm is one pre-training (or none) on all audio at
hand; each is fine-tuned with the same ten minutes of labels and scored on an unseen speaker. The
page compares: pre-training with none; the four cells of the paper's table 4 (inputs and targets
continuous or quantized); LayerDrop drawn once a step with a draw in every slot. Finished runs are
kept: run it again to continue. On a GPU give a larger configuration with --pretrain and --finetune.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import itertools
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from trial import ROOT, build_shards, run, seconds, train_once

from w2v2dist.config import flatten, read_yaml
from w2v2dist.runtime.logging import read_jsonl

FOUR_SLOTS = ("data.virtual_world_size=4", "data.max_samples_per_slot=96_000")
CELLS = (
    "continuous_quantized",
    "continuous_continuous",
    "quantized_continuous",
    "quantized_quantized",
)
NONE, BASELINE = "no pre-training", CELLS[0]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to pre-train; `model` settings hold for the fine-tuning too."""

    name: str
    model: tuple[str, ...] = ()
    pretraining: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms side by side. Of each pair the first should have fewer errors; `equal`: neither."""

    title: str
    arms: tuple[str, ...]
    claim: str
    pairs: tuple[tuple[str, str], ...]
    equal: bool = False


def arms() -> dict[str, Arm]:
    """Every arm by name; the cells are those of configs/ablations."""
    out = {NONE: Arm(NONE)}
    for cell in CELLS:
        model = read_yaml(ROOT / "configs" / "ablations" / f"{cell}.yaml")["model"]
        quantize = [(k, str(model[k]).lower()) for k in ("quantize_inputs", "quantize_targets")]
        out[cell] = Arm(cell, tuple(f"model.{k}={v}" for k, v in quantize))
    for name, per in (("LayerDrop per step", "step"), ("LayerDrop per slot", "slot")):
        drop = ("model.layer_drop=0.2", f"model.layer_drop_per={per}")
        out[name] = Arm(name, pretraining=(*drop, *FOUR_SLOTS))
    return out


COMPARISONS = (
    Comparison(
        "Pre-training against none",
        (BASELINE, NONE),
        "fewer errors with pre-training (tables 1 and 2 of the paper)",
        ((BASELINE, NONE),),
    ),
    Comparison(
        "Inputs and targets, continuous or quantized",
        CELLS,
        "table 4 of the paper: 7.97, 8.58, 11.18, 12.18 % word errors in the order of the rows",
        tuple(itertools.pairwise(CELLS)),
    ),
    Comparison(
        "LayerDrop, one draw a step or one a slot (rate 0.2, four slots)",
        ("LayerDrop per step", "LayerDrop per slot"),
        "no difference (a draw a step lets every GPU skip the same layers)",
        (("LayerDrop per step", "LayerDrop per slot"),),
        equal=True,
    ),
)


def slug(arm: str, seed: int) -> str:
    """A folder's name."""
    return f"{arm.replace(' ', '_')}_{seed}"


def one_run(arguments: argparse.Namespace, arm: Arm, seed: int) -> dict[str, float]:
    """Pre-train, fine-tune and score; returns error rates in % on the unseen speaker."""
    folder = arguments.output / "runs" / f"finetune_{slug(arm.name, seed)}"
    if not (folder / "test" / "evaluation.json").exists():
        _train_and_score(arguments, arm, seed)
    scores = json.loads((folder / "test" / "evaluation.json").read_text())
    return {k: 100 * scores[k] for k in ("cer", "wer")}


def _train_and_score(arguments: argparse.Namespace, arm: Arm, seed: int) -> None:
    output, shards = arguments.output, arguments.output / "shards"
    source = None
    if arm.name != NONE:
        source = train_once(
            str(arguments.pretrain),
            output,
            f"pretrain_{slug(arm.name, seed)}",
            [
                f"data.train={shards / 'pretrain'}",
                f"data.valid={shards / 'pretrain_valid'}",
                f"seed={seed}",
                *arm.model,
                *arm.pretraining,
            ],
        )
    folder = train_once(
        str(arguments.finetune),
        output,
        f"finetune_{slug(arm.name, seed)}",
        [
            f"data.train={shards / 'single_train'}",
            f"data.valid={shards / 'single_valid'}",
            f"seed={seed}",
            *arm.model,
            f"pretrained={source or 'null'}",
            *([] if source else ["freeze_steps=0"]),
        ],
    )
    evaluate = [sys.executable, "-m", "w2v2dist.cli", "evaluate", str(folder)]
    evaluate += ["--output", str(folder / "test")]
    run([*evaluate, "--data", str(shards / "single_test")], output / "evaluate.log")


def curve(folder: Path, key: str) -> dict[int, float]:
    """A logged metric by step."""
    records = read_jsonl(folder / "metrics.jsonl") if folder.is_dir() else []
    return {int(r["step"]): float(r[key]) for r in records if key in r}


def draw(arguments: argparse.Namespace, seeds: dict[str, list[int]], path: Path) -> None:
    """Curves of all arms: pre-training accuracy and fine-tuning letter errors on validation."""
    figure = Figure(figsize=(13, 4 * len(COMPARISONS)), layout="constrained")
    grid = figure.subplots(len(COMPARISONS), 3)
    panels = (
        ("pretrain", "valid/contrastive_loss", 1, "pre-training: validation loss (bits)"),
        ("pretrain", "valid/accuracy", 100, "pre-training: validation accuracy (%)"),
        ("finetune", "valid/cer", 100, "fine-tuning: validation letter errors (%)"),
    )
    for row, comparison in zip(grid, COMPARISONS, strict=True):
        for axes, (kind, key, scale, title) in zip(row, panels, strict=True):
            for number, arm in enumerate(comparison.arms):
                for seed in seeds[arm]:
                    folder = arguments.output / "runs" / f"{kind}_{slug(arm, seed)}"
                    points = curve(folder, key)
                    label = arm if seed == seeds[arm][0] and points else None
                    values = [scale * v for v in points.values()]
                    axes.plot(list(points), values, color=f"C{number}", label=label, alpha=0.8)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("update", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
        row[2].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def verdict(comparison: Comparison, scores: dict[str, list[dict[str, float]]]) -> list[str]:
    """What the figures say of each expected order, seed by seed; never more than their number."""
    lines = []
    for better, worse in comparison.pairs:
        gains = [b["cer"] - a["cer"] for a, b in zip(scores[better], scores[worse], strict=False)]
        mean, won = statistics.mean(gains), sum(gain > 0 for gain in gains)
        if len(gains) == 1:
            word = "one seed, which says nothing of the spread"
        elif 0 < won < len(gains):
            word = "the seeds disagree" + ("" if comparison.equal else ": **not shown**")
        elif comparison.equal or not won:
            word = "**another direction than expected**"
        else:
            word = "the direction agrees"
        lines.append(
            f"- {better} before {worse}: {mean:+.1f} points of letter errors, ahead with {won} of "
            f"{len(gains)} seeds: {word} (by chance all agree with probability "
            f"{0.5 ** (len(gains) - 1):.2g})."
        )
    return lines


def table(
    arguments: argparse.Namespace, comparison: Comparison, scores: dict[str, list[dict[str, float]]]
) -> list[str]:
    """The rows of a comparison."""
    names = ("loss", "contrastive_loss", "accuracy", "code_perplexity")
    rows = [
        "| arm | pre-training, validation: bits · accuracy % · codes | letters after 200, 400 "
        "updates (validation) | unseen speaker: letter / word errors % by seed | mean |",
        "|-|-|-|-|-|",
    ]
    for arm in comparison.arms:
        ends: dict[str, list[float]] = {name: [] for name in names}
        early: dict[int, list[float]] = {200: [], 400: []}
        for seed in range(1, len(scores[arm]) + 1):
            root = arguments.output / "runs"
            for name, values in ends.items():
                points = curve(root / f"pretrain_{slug(arm, seed)}", f"valid/{name}")
                values += [points[max(points)]] if points else []
            points = curve(root / f"finetune_{slug(arm, seed)}", "valid/cer")
            for step, values in early.items():
                values += [100 * points[step]] if step in points else []
        pretraining = "–"
        if ends["accuracy"]:
            mean = {name: statistics.mean(values) for name, values in ends.items()}
            pretraining = (
                f"{mean['contrastive_loss']:.3f} · {100 * mean['accuracy']:.1f} · "
                f"{mean['code_perplexity']:.0f}"
            )
        started = ", ".join(f"{statistics.mean(v):.1f}" for v in early.values() if v)
        each = " · ".join(f"{s['cer']:.1f} / {s['wer']:.1f}" for s in scores[arm])
        cer, wer = (statistics.mean(s[k] for s in scores[arm]) for k in ("cer", "wer"))
        rows.append(f"| {arm} | {pretraining} | {started} | {each} | **{cer:.1f} / {wer:.1f}** |")
    return rows


def results_page(
    arguments: argparse.Namespace, scores: dict[str, list[dict[str, float]]], figure: str
) -> str:
    """Markdown: the comparisons, and what they show."""
    pretrain = flatten(read_yaml(arguments.pretrain))
    runs = sorted((arguments.output / "runs").iterdir())
    hours = sum(seconds(folder) for folder in runs) / 3600
    parts = [
        "# Learning: a small study on real speech",
        "",
        f"{datetime.date.today()} · {arguments.device} · {len(runs)} runs, {hours:.1f} hours of "
        f"training in all · {pretrain.get('loop.max_steps')} updates of pre-training",
        "",
        f"`python benchmarks/learning/study.py {arguments.command}`",
        "",
        f"![validation curves, one line a seed]({figure})",
    ]
    for comparison in COMPARISONS:
        parts += ["", f"## {comparison.title}", "", f"Expected: {comparison.claim}.", ""]
        parts += [*table(arguments, comparison, scores), "", *verdict(comparison, scores)]
    return "\n".join([*parts, ""])


def main() -> int:
    """Run the study and write the results page with its curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parent
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pretrain", type=Path, default=here / "pretrain.yaml")
    parser.add_argument("--finetune", type=Path, default=here / "finetune.yaml")
    parser.add_argument(
        "--seeds", type=int, default=3, help="of pre-training against none (default: 3)"
    )
    parser.add_argument(
        "--ablation-seeds", type=int, default=3, help="of every other arm (default: 3)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (one CPU thread each)")
    parser.add_argument("--device", default=f"{os.cpu_count()} CPU cores, one thread a run")
    parser.add_argument(
        "--results", type=Path, help="Markdown page to write (default: OUTPUT/results.md)"
    )
    parser.add_argument("--report-only", action="store_true", help="the page of the finished runs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.command = (
        f"--speech FOLDER --output FOLDER --seeds {arguments.seeds} --ablation-seeds "
        f"{arguments.ablation_seeds} --jobs {arguments.jobs}"
    )
    if not (arguments.output / "shards" / "single_test" / "index.json").exists():
        build_shards(arguments.speech, arguments.output)
    known = arms()

    def scored(job: tuple[str, int]) -> bool:
        folder = arguments.output / "runs" / f"finetune_{slug(*job)}"
        return (folder / "test" / "evaluation.json").exists()

    count = {name: arguments.ablation_seeds for name in known}
    count |= dict.fromkeys((BASELINE, NONE), arguments.seeds)
    jobs = [(arm, seed) for arm in known for seed in range(1, count[arm] + 1)]
    # A stopped study should have something of each: every arm once, then the first comparison
    jobs.sort(key=lambda job: (job[1] > 1, job[0] not in (BASELINE, NONE), job[1]))
    if arguments.report_only:
        jobs = [*filter(scored, jobs)]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda job: one_run(arguments, known[job[0]], job[1]), jobs))
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in known}
    for (arm, _), score in zip(jobs, results, strict=True):
        scores[arm].append(score)
    page = arguments.results or arguments.output / "results.md"
    figure = page.with_suffix(".svg")
    draw(arguments, {arm: list(range(1, len(s) + 1)) for arm, s in scores.items()}, figure)
    page.write_text(results_page(arguments, scores, figure.name))
    print(page.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

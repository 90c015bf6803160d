"""Does an alphabet cost anything? The same recordings of single digits, spelled in Latin, Cyrillic
and Devanagari letters and in Chinese characters, fine-tuned with `data.tokens=auto`.

    python benchmarks/learning/alphabets.py --speech FOLDER --output FOLDER [--seeds 1 2] [--jobs 2]

FOLDER holds digits/SPLIT/SPEAKER/CHAPTER/... in LibriSpeech's layout, whose chapters 2 and 4 are
single digits. Random weights, one recipe (configs/tiny_finetune.yaml), scores on other recordings
of the training speakers and on a new one. Finished runs are kept: run it again to continue.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import datetime
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.learning.trial import run

SCRIPTS = {
    "Latin": "zero one two three four five six seven eight nine",
    "Cyrillic": "ноль один два три четыре пять шесть семь восемь девять",
    "Devanagari": "शून्य एक दो तीन चार पाँच छह सात आठ नौ",
    "Chinese": "零 一 二 三 四 五 六 七 八 九",
}
ENGLISH = SCRIPTS["Latin"].upper().split()


def build(speech: Path, output: Path, script: str) -> Path:
    """Shards of each split with the digits in a script."""
    spelled = dict(zip(ENGLISH, SCRIPTS[script].split(), strict=True))
    for split in ("train", "valid", "test"):
        folder = output / script / split
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "manifest.tsv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(("path", "text", "speaker"))
            for transcript in sorted((speech / "digits" / split).glob("*/[24]/*.trans.txt")):
                for line in transcript.read_text().splitlines():
                    key, word = line.split()
                    audio = transcript.resolve().parent / f"{key}.flac"
                    table.writerow((audio, spelled[word], key.split("-")[0]))
        target = ["--output", str(folder / "shards"), "--name", "digits", "--workers", "1"]
        command = [sys.executable, "shards/build.py", "--input", str(folder), *target]
        run(command, output / f"{script}.log")
    return output / script


def train(output: Path, script: str, seed: int, steps: int) -> dict[str, tuple[float, float]]:
    """Letter errors and utterances with any error, in %, on `valid` and `test`."""
    data, folder = output / script, output / "runs" / f"{script}_{seed}"
    log = output / f"{script}_{seed}.log"
    command = [sys.executable, "-m", "w2v2dist.cli", "train", "configs/tiny_finetune.yaml"]
    values = {
        "run_dir": folder,
        "data.train": data / "train" / "shards",
        "data.valid": data / "valid" / "shards",
        "data.tokens": "auto",
        "data.virtual_world_size": 1,
        "loop.validate_every": 250,
        "loop.save_every": 250,
        "loop.max_steps": steps,
        "pretrained": "null",
        "freeze_steps": 0,
        "seed": seed,
    }
    run([*command, *(f"{key}={value}" for key, value in values.items())], log)
    out = {}
    for split in ("valid", "test"):
        results = output / "scores" / f"{script}_{seed}_{split}"
        options = ["--data", str(data / split / "shards"), "--output", str(results)]
        # the last checkpoint, not the best: scripts choose the best by other errors
        options += ["--checkpoint", "latest"]
        run([sys.executable, "-m", "w2v2dist.cli", "evaluate", str(folder), *options], log)
        scores = json.loads((results / "evaluation.json").read_text())
        lines = (results / "hypotheses.tsv").read_text(encoding="utf-8").splitlines()[1:]
        wrong = sum(len({*line.split("\t")[1:]}) > 1 for line in lines)
        out[split] = 100 * scores["cer"], 100 * wrong / len(lines)
    return out


def main() -> None:
    """Train all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS:
        build(args.speech, args.output, script)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = {
            (script, seed): pool.submit(train, args.output, script, seed, args.steps)
            for seed in args.seeds
            for script in SCRIPTS
        }
        results = {key: job.result() for key, job in jobs.items()}
    page = [
        "# Alphabets: the same digits in four scripts (CPU)",
        "",
        f"{datetime.date.today()} · one thread a run · seeds {args.seeds} · `python "
        f"benchmarks/learning/alphabets.py --speech FOLDER --output FOLDER --steps {args.steps}`",
        "",
        "Letter errors / utterances with an error, in %, after the last update.",
        "",
        "| script | training's speakers, by seed | mean | new speaker, by seed | mean |",
        "|-|-|-|-|-|",
    ]
    for script in SCRIPTS:
        cells = []
        for split in ("valid", "test"):
            scores = [results[script, seed][split] for seed in args.seeds]
            means = [statistics.mean(column) for column in zip(*scores, strict=True)]
            cells.append(" · ".join(f"{a:.1f} / {b:.1f}" for a, b in scores))
            cells.append(f"**{means[0]:.1f} / {means[1]:.1f}**")
        page.append(f"| {script} | {' | '.join(cells)} |")
    text = "\n".join(page) + "\n"
    (args.output / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""The main job on this machine: little labelled speech, much unlabelled speech, a language model,
a transcript.

    make demo                    # on speech that is fetched
    make demo AUDIO=/path/to/it  # on recordings of yours
    make demo SEED=2             # other random numbers

Recordings, shards, pre-training (interrupted and continued), fine-tuning on ten minutes of labels
from it and from random weights, an n-gram of words, word error rates on sentences that no training
has, transcripts, report. Everything goes to demo/. Speech and shards are kept for the next time;
the runs are made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from launch.fetch_speech import sentence
from w2v2dist.config import read_yaml
from w2v2dist.reporting.report import read_run, write_report
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import EXIT_PREEMPTED

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))  # short in what is printed
PRETRAIN, FINETUNE = ROOT / "configs/demo/pretrain.yaml", ROOT / "configs/demo/finetune.yaml"
PROCESSES = min(2, torch.cuda.device_count() or os.cpu_count() or 1)  # the configs have two slots
STARTS = {"pre-trained": "from_pre-training", "random": "from_scratch"}  # and their run's name
FP32_SHARE = 0.7  # of the updates, where bf16 is no faster
MIN_STEPS = 60  # the interruption comes after a third
SHOWN, LONGEST_SHOWN = 5, 120  # transcripts at the end, and their letters
BEAM, TRIALS = 200, 48  # of the search with the language model, and of finding its weights
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step of the demo did not do what it should; the message says which."""


@dataclass(frozen=True, slots=True)
class Demo:
    """Where everything of one demo goes, and what its trainings have in common."""

    folder: Path
    audio: Path | None
    seed: int
    share: float = 1.0  # of the updates of the configurations

    @property
    def speech(self) -> Path:
        return self.folder / "speech"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def shards(self, split: str) -> Path:
        """The shards of a split; they need not be there."""
        return self.folder / "shards" / split

    def has(self, split: str) -> bool:
        """Whether the speech has such a split."""
        return (self.speech / split / "manifest.tsv").exists()

    def settings(self, run: Path, config: Path) -> list[str]:
        """Overrides of a training."""
        valid = self.shards("valid") if self.has("valid") else "null"
        return [
            f"run_dir={run}",
            f"data.valid={valid}",
            f"seed={self.seed}",
            f"engine.precision={fast_precision()}",
            f"loop.max_steps={self.num_steps(config)}",
        ]

    def num_steps(self, config: Path) -> int:
        """Updates of a training: those of the file, or so many that fp32 takes no longer."""
        share = self.share if fast_precision() == "bf16" else self.share * FP32_SHARE
        steps = int(read_yaml(config)["loop"]["max_steps"])
        return max(MIN_STEPS, round(share * steps))


def fast_precision() -> str:
    """bf16 where the GPU or the CPU multiplies in it; a CPU without is 100 times slower in it."""
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_has_bf16()
    return "bf16" if fast else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for it (AVX-512 BF16 or AMX)."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def main(argv: list[str] | None = None) -> int:
    """Run every step; exit status 0, or 1 with the step that failed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audio", type=Path, help="folder of recordings (default: fetch some)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="default: demo")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: 1)")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the updates: 0.1 for a quick look (default: 1)"
    )
    args = parser.parse_args(argv)
    own = "" if args.audio is None else f"own_{args.audio.resolve().name}".replace(",", "_")
    folder = args.output / own
    try:
        run_demo(Demo(folder, args.audio, args.seed, args.share))
    except DemoError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print(
            "\ninterrupted; `make demo` starts again with the speech and shards that are there"
        )
        return 130
    return 0


def run_demo(demo: Demo) -> None:
    """All steps. Raises DemoError."""
    started = time.perf_counter()
    heading(1, "Speech", "real recordings, split so that the test is on what no training has")
    audio = ["--audio", demo.audio] if demo.audio else []
    command(ROOT / "launch/fetch_speech.py", demo.speech, *audio)
    source = (demo.speech / "SOURCE.txt").read_text(encoding="utf-8").strip()
    heading(2, "Shards", "WebDataset tars of 16 kHz FLAC with an index")
    for manifest in sorted(demo.speech.glob("*/manifest.tsv")):
        target = demo.shards(manifest.parent.name)
        if demo.audio:  # it may have changed, or be another folder of the same name
            shutil.rmtree(target, ignore_errors=True)
        build = ROOT / "shards/build.py"
        command(build, "--input", manifest.parent, "--output", target, "--shard-mb", 16)
    shutil.rmtree(demo.runs, ignore_errors=True)
    heading(3, "Pre-training", f"audio alone; {PROCESSES} processes, interrupted once")
    pretrain(demo)
    results: dict[str, dict[str, Any]] = {}
    if demo.has("test"):
        heading(
            4, "Fine-tuning", "CTC on few labels, from the pre-training and from random weights"
        )
        for start in STARTS:
            finetune(demo, start)
        heading(5, "Language model", "a 4-gram of the words of the training's sentences")
        language_model(demo)
        heading(
            6, "Recognition", "of sentences that no training has, letter by letter and in words"
        )
        results = {start: recognise(demo, start) for start in STARTS}
        transcripts(demo)
    heading(7, "Result", source)
    finish(demo, results, source, time.perf_counter() - started)


def heading(number: int, name: str, text: str) -> None:
    """Announce a step."""
    console.rule(f"[bold]{number}. {name}", align="left")
    console.print(text, style="dim", markup=False)


def command(*arguments: object) -> None:
    """Run a Python script of this repository. Raises DemoError where it fails."""
    words = [str(a) for a in arguments]
    console.print(f"$ python {' '.join(words)}", style="cyan", markup=False)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise DemoError(f"`python {' '.join(words)}` failed with exit status {code}")


def submit(config: Path, overrides: list[str]) -> list[str]:
    """The command that trains, and that continues the training when it is given again."""
    options = ["--local", "--processes", str(PROCESSES)]
    words = [str(ROOT / "launch/submit.py"), *options, str(config), *overrides]
    console.print(f"$ python {' '.join(words)}", style="cyan", markup=False)
    return [sys.executable, *words]


def train(config: Path, overrides: list[str]) -> None:
    """Train to the end. Raises DemoError."""
    code = subprocess.run(submit(config, overrides)).returncode
    if code:
        raise DemoError(f"the training {overrides[0]} failed with exit status {code}")


def pretrain(demo: Demo) -> None:
    """Pre-train; end it with SIGTERM on the way, as a cluster does, and give the command again."""
    run = demo.runs / "pretraining"
    splits = [str(demo.shards(s)) for s in ("labelled", "unlabelled") if demo.has(s)]
    overrides = [*demo.settings(run, PRETRAIN), f"data.train={','.join(splits)}"]
    middle = demo.num_steps(PRETRAIN) // 3
    process = subprocess.Popen(submit(PRETRAIN, overrides))
    try:
        while process.poll() is None and last_step(run) < middle:
            time.sleep(0.2)
        if process.poll() is not None:
            raise DemoError(f"the training {run} ended with {process.returncode} before its time")
        console.print(
            f"\n[bold red]SIGTERM[/bold red] after step {last_step(run)}, as on preemption"
        )
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=300)
    finally:
        process.kill()
    saved = last_event(run, "preempted")
    if code != EXIT_PREEMPTED or saved is None:
        raise DemoError(f"the interrupted training {run} did not save (exit status {code})")
    console.print(f"saved at step {saved['step']}: {(run / 'checkpoints/latest').resolve()}")
    console.print("\n[bold green]the same command again[/bold green]")
    train(PRETRAIN, overrides)
    resumed = last_event(run, "resumed")
    if resumed is None or resumed["step"] != saved["step"]:
        raise DemoError(f"the training {run} did not resume at step {saved['step']}: {resumed}")
    console.print(f"it resumed after step {resumed['step']} and finished")


def last_step(run: Path) -> int:
    """The last logged step of a run, 0 before the first."""
    return max((int(r["step"]) for r in read_jsonl(run / "metrics.jsonl")), default=0)


def last_event(run: Path, name: str) -> dict[str, Any] | None:
    """The last event of that name in the run's log."""
    found = [e for e in read_jsonl(run / "events.jsonl") if e["event"] == name]
    return found[-1] if found else None


def finetune(demo: Demo, start: str) -> None:
    """Train one of STARTS on the labels: the same recipe, the same number of updates."""
    console.print(f"\n[bold]{start} start[/bold]")
    pretrained = demo.runs / "pretraining" if start == "pre-trained" else "null"
    # The letters of English, or the characters of one's own texts
    tokens = [] if demo.audio is None else ["data.tokens=auto"]
    data = [f"pretrained={pretrained}", f"data.train={demo.shards('labelled')}"]
    train(FINETUNE, [*demo.settings(demo.runs / STARTS[start], FINETUNE), *data, *tokens])


def language_model(demo: Demo) -> None:
    """folder/lm/4gram.arpa, with the words of the texts outside validation and test."""
    folder = demo.folder / "lm"
    alphabet = demo.runs / STARTS["pre-trained"]
    texts = demo.speech / "texts.txt"
    w2v2dist("lm", "text", texts, "--alphabet", alphabet, "--output", folder)
    w2v2dist("lm", "ngram", folder / "text.txt", "--output", folder / "4gram.arpa")


def w2v2dist(*arguments: object) -> None:
    """Run a command of the package. Raises DemoError where it fails."""
    command("-m", "w2v2dist.cli", *arguments)


def recognise(demo: Demo, start: str) -> dict[str, Any]:
    """The error rates on the test of a fine-tuned run: {"greedy": …, "4-gram": …}."""
    run = demo.runs / STARTS[start]
    data = ["--data", demo.shards("test")]
    search = ["--lm", demo.folder / "lm/4gram.arpa", "--beam-size", BEAM]
    tuning = ["--tune", demo.shards("valid"), "--trials", TRIALS] if demo.has("valid") else []
    out = {}
    for name, options in (("greedy", []), ("4-gram", [*search, *tuning])):
        folder = run / "evaluations" / name
        w2v2dist("evaluate", run, *data, "--output", folder, *options)
        out[name] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return out


def transcripts(demo: Demo) -> None:
    """A few test recordings, evenly spaced from the fewest word errors to the most, as they were
    read, and as the pre-trained model hears them; then one as a person would ask for it."""
    run = demo.runs / STARTS["pre-trained"]
    read = {
        name: {r["key"]: r for r in read_jsonl(run / "evaluations" / name / "hypotheses.jsonl")}
        for name in ("greedy", "4-gram")
    }
    rows = list(read["4-gram"].values())
    # An alphabet without words counts letters
    rows.sort(key=lambda r: r["errors"] / max(1, r.get("num_words", r.get("num_letters", 0))))
    rows = [r for r in rows if len(r["reference"]) <= LONGEST_SHOWN] or rows
    chosen = rows[len(rows) // (2 * SHOWN) :: max(1, len(rows) // SHOWN)][:SHOWN]
    table = Table(title="from few errors to many", show_header=False, title_justify="left")
    for row in chosen:
        table.add_row("said", row["reference"], style="bold")
        table.add_row("letters", read["greedy"][row["key"]]["hypothesis"], style="dim")
        table.add_row("words", row["hypothesis"], end_section=True)
    console.print(table)
    lines = (demo.speech / "test/manifest.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
    said = {sentence(text): path for path, text, _ in (line.split("\t") for line in lines)}
    spoken = said.get(sentence(chosen[0]["reference"]), next(iter(said.values())))
    weights = run / "evaluations/4-gram/weights.json"
    search = ["--lm", demo.folder / "lm/4gram.arpa", "--beam-size", BEAM]
    tuned = ["--weights", weights] if weights.exists() else []
    recording = os.path.relpath((demo.speech / "test" / spoken).resolve())
    w2v2dist("transcribe", run, recording, *search, *tuned)


def finish(demo: Demo, results: dict[str, dict[str, Any]], source: str, duration_s: float) -> None:
    """Print the table and write report.html."""
    run = read_run(demo.runs / "pretraining")
    losses = run.series("contrastive_loss")[1]
    text = (
        f"Contrastive loss {losses[0]:.2f} → {losses[-1]:.2f} bits (chance {run.chance_bits:.3f})."
    )
    notes = {"Speech.": source, "Pre-training.": text}
    console.print(text)
    table = Table("start", "decoder", "word errors", "letter errors", "test utterances")
    for start, decoders in results.items():
        for decoder, r in decoders.items():
            rates = [_rate(r, name) for name in ("wer", "cer")]
            table.add_row(start, decoder, *rates, str(r["num_utterances"]))
            notes[f"Test, {start} start, {decoder}."] = "{} word errors, {} letter errors".format(
                *rates
            )
    if results:
        console.print(table)
    else:
        console.print("No transcripts, so no fine-tuning and no word error rate.", style="yellow")
    folders = [demo.runs / name for name in ("pretraining", *(STARTS.values() if results else ()))]
    path = write_report(folders, demo.folder / "report.html", notes)
    console.print(f"report: {path.resolve()}   ({duration_s / 60:.1f} minutes in all)")


def _rate(result: dict[str, Any], name: str) -> str:
    """An error rate with its 95 % interval, in percent; – where the alphabet has none."""
    if name not in result:
        return "–"
    low, high = (result.get(f"{name}_{end}", result[name]) for end in ("low", "high"))
    return f"{100 * result[name]:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


if __name__ == "__main__":
    sys.exit(main())

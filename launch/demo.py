"""The main job on this machine: recordings, shards, pre-training, fine-tuning, WER, report.

    make demo                    # on speech that is fetched
    make demo AUDIO=/path/to/it  # on recordings of yours

Everything goes to demo/. Speech and shards are kept for the next time; the runs are made anew.
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
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from w2v2dist.config import read_yaml
from w2v2dist.reporting.report import read_run, write_report
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import EXIT_PREEMPTED

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))  # short in what is printed
PRETRAIN, FINETUNE = ROOT / "configs/tiny_pretrain.yaml", ROOT / "configs/tiny_finetune.yaml"
PROCESSES = 2
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step of the demo did not do what it should; the message says which."""


def main(argv: list[str] | None = None) -> int:
    """Run every step; exit status 0, or 1 with the step that failed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audio", type=Path, help="folder of recordings (default: fetch some)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="default: demo")
    args = parser.parse_args(argv)
    folder = args.output if args.audio is None else args.output / f"own_{args.audio.resolve().name}"
    try:
        demo(folder, args.audio)
    except DemoError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print(
            "\ninterrupted; `make demo` starts again with the speech and shards that are there"
        )
        return 130
    return 0


def demo(folder: Path, audio: Path | None) -> None:
    """All steps, into `folder`. Raises DemoError."""
    started = time.perf_counter()
    speech, shards, runs = folder / "speech", folder / "shards", folder / "runs"
    heading(1, "Speech", "real recordings, split so that the test is on what no training has heard")
    command(ROOT / "launch/fetch_speech.py", speech, *(["--audio", audio] if audio else []))
    source = (speech / "SOURCE.txt").read_text(encoding="utf-8").strip()
    heading(2, "Shards", "WebDataset tars of 16 kHz FLAC with an index")
    splits = build_shards(speech, shards)
    shutil.rmtree(runs, ignore_errors=True)

    heading(3, "Pre-training", f"{PROCESSES} processes, interrupted once and continued")
    audio_only = ",".join(str(splits[name]) for name in ("train", "unlabelled") if name in splits)
    valid = [f"data.valid={splits['valid']}"] if "valid" in splits else ["data.valid=null"]
    pretraining = runs / "pretraining"
    pretrain(pretraining, [f"data.train={audio_only}", *valid])
    results: dict[str, dict[str, Any]] = {}
    if "test" in splits:
        heading(4, "Fine-tuning", "CTC on letters, from the pre-trained and from a random start")
        data = [f"data.train={splits['train']}", *valid]
        for name, start in (
            ("from pre-training", [f"pretrained={pretraining}"]),
            ("from scratch", ["pretrained=null", "freeze_steps=0"]),  # nothing to freeze
        ):
            run = runs / name.replace(" ", "_")
            console.print(f"\n[bold]{name}[/bold]")
            train(FINETUNE, run, [*start, *data])
            results[name] = evaluate(run, splits["test"])
    heading(5, "Result", source)
    finish(folder, results, source, time.perf_counter() - started)


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


def build_shards(speech: Path, shards: Path) -> dict[str, Path]:
    """One folder of shards for each split that has recordings; a rerun finds them made."""
    splits = {}
    for manifest in sorted(speech.glob("*/manifest.tsv")):
        name = manifest.parent.name
        splits[name] = shards / name
        build = ROOT / "shards/build.py"
        command(build, "--input", manifest.parent, "--output", splits[name], "--shard-mb", 16)
    return splits


def submit(config: Path, run: Path, overrides: list[str]) -> list[str]:
    """The command that trains, and that continues the training when it is given again."""
    options = ["--local", "--processes", str(PROCESSES)]
    words = [str(ROOT / "launch/submit.py"), *options, str(config), f"run_dir={run}", *overrides]
    console.print(f"$ python {' '.join(words)}", style="cyan", markup=False)
    return [sys.executable, *words]


def train(config: Path, run: Path, overrides: list[str]) -> None:
    """Train to the end. Raises DemoError."""
    code = subprocess.run(submit(config, run, overrides)).returncode
    if code:
        raise DemoError(f"the training {run} failed with exit status {code}")


def pretrain(run: Path, overrides: list[str]) -> None:
    """Pre-train; end it with SIGTERM on the way, as a cluster does, and give the command again."""
    middle = int(read_yaml(PRETRAIN)["loop"]["max_steps"]) // 3
    process = subprocess.Popen(submit(PRETRAIN, run, overrides))
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
    train(PRETRAIN, run, overrides)
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


def evaluate(run: Path, test: Path) -> dict[str, Any]:
    """Error rates of a fine-tuned run on the test shards."""
    folder = run / "evaluations" / "test"
    command("-m", "w2v2dist.cli", "evaluate", run, "--data", test, "--output", folder)
    result: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return result


def finish(folder: Path, results: dict[str, dict[str, Any]], source: str, seconds: float) -> None:
    """Print the table and write report.html."""
    run = read_run(folder / "runs/pretraining")
    losses = run.series("contrastive_loss")[1]
    text = (
        f"Contrastive loss {losses[0]:.2f} → {losses[-1]:.2f} bits (chance {run.chance_bits:.3f}), "
        f"code perplexity {run.last('code_perplexity') or 0:.0f}."
    )
    notes = {"Speech.": source, "Pre-training.": text}
    console.print(text)
    if results:
        table = Table("start", "word errors", "letter errors", "test utterances")
        for name, r in results.items():
            cells = (f"{100 * r['wer']:.1f} %", f"{100 * r['cer']:.1f} %", str(r["num_utterances"]))
            table.add_row(name, *cells)
            notes[f"Test, {name}."] = f"{cells[0]} word errors, {cells[1]} letter errors"
        console.print(table)
    else:
        console.print("No transcripts, so no fine-tuning and no word error rate.", style="yellow")
    folders = [folder / "runs" / name.replace(" ", "_") for name in ("pretraining", *results)]
    path = write_report(folders, folder / "report.html", notes)
    console.print(f"curves: {path.resolve()}   ({seconds / 60:.1f} minutes in all)")


if __name__ == "__main__":
    sys.exit(main())

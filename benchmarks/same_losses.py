"""Do two commits train the same to the bit, and does the new one resume what the old one saved?

    python benchmarks/same_losses.py OLD [NEW] [--output FOLDER] [--steps 30] [--jobs 1]

OLD and NEW are git revisions; without NEW, a copy of the working tree as it is now. Small models
are pre-trained and fine-tuned under ZeRO 0 to 3 by one process and by three, with dropout,
LayerDrop, speeds, validations and saves. A signal interrupts each training, and the same command
ends it: OLD resumed by OLD, OLD resumed by NEW (a checkpoint of that commit resumes), NEW resumed
by NEW. Every number that the first logs for a step (loss, gradient norm, validation; not times) and
the samples of every slot must be the same in the others: exit status 1 and the first step that
differs, if one bit does. Synthetic audio, sharded once by OLD.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

ROOT = Path(__file__).parents[1]
LIMIT_S = 300  # of one start of a training
PREEMPTED = 75  # exit status: saved, the same command continues
NOT_NUMBERS = {"step", "time", "seconds", "slowest_rank", "slowest_host"}  # and *_seconds
WORDS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN".split()
COMMON = """
  conv_channels: 32, num_layers: 3, embed_dim: 64, ffn_dim: 128, num_heads: 4, final_dim: 32,
  pos_conv_kernel: 16, pos_conv_groups: 4, num_codebook_entries: 40, layer_drop: 0.3, dropout: 0.1,
  attention_dropout: 0.1, activation_dropout: 0.1, input_dropout: 0.1, feature_dropout: 0.1"""
CONFIGS = {  # in the small: BASE, of which two of three processes have an empty slot, and LARGE
    "pretrain": f"""model: {{{COMMON}}}
data: {{virtual_world_size: 4, max_samples_per_slot: 64_000, max_crop: 32_000, min_samples: 16_000,
  speed_perturbation: [0.9, 1.0, 1.1]}}
schedule: {{peak_lr: 0.001, warmup_steps: 3}}""",
    "finetune": f"""model: {{{COMMON}, extractor_norm: layer, norm_first: true, conv_bias: true,
  channel_mask_prob: 0.2, channel_mask_length: 8}}
data: {{virtual_world_size: 6, max_samples_per_slot: 64_000, max_crop: 64_000, min_samples: 1_600,
  normalize: true}}
schedule: {{name: tri_stage, peak_lr: 0.001}}
freeze_steps: 5""",
}
WHO = ("OLD", "OLD", "NEW"), ("OLD", "NEW", "NEW")  # began, and resumed
COLUMNS = (
    "task|ZeRO|processes|begun by|resumed by|interrupted after|steps|numbers|differing steps|"
    "largest relative difference|last loss|samples (SHA-256)"
).split("|")
stopping = threading.Event()  # this command was told to end


@dataclass(frozen=True)
class Case:
    """One training to compare."""

    task: str
    stage: int
    processes: int
    steps: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.task}, ZeRO {self.stage}, processes {self.processes}"

    def write(self) -> None:
        """Write the configuration that both commits get."""
        every = max(1, self.steps // 3)
        loop = {"max_steps": self.steps, "validate_every": every, "save_every": every}
        config = {"task": self.task, "run_dir": "", **yaml.safe_load(CONFIGS[self.task])}
        shards = str(self.folder.parent / "shards")
        config["data"] |= {"train": shards, "valid": shards, "num_workers": 1}
        config["loop"] = {**loop, "log_every": 1, "log_samples": True, "num_threads": 1}
        config["engine"] = {"precision": "fp32", "zero_stage": self.stage}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))


@dataclass
class Line:
    """One training of a case: who began and who resumed it, and what came of it."""

    case: Case
    begun: str
    resumed: str
    interrupted: int
    numbers: dict[tuple[int, str], str]  # (step, name) -> JSON
    differing: set[int] = field(default_factory=set)
    largest: float = 0.0
    first: str = ""  # the first difference, in words

    def row(self) -> str:
        """Its row of the Markdown table."""
        case, logged = self.case, self.numbers
        used = sha256("".join(v for (_, n), v in sorted(logged.items()) if n == "samples"))
        values = [case.task, case.stage, case.processes, self.begun, self.resumed, self.interrupted]
        values += [case.steps, len(logged), len(self.differing), f"{self.largest:.1e}"]
        values += [logged[case.steps, "loss"], used[:12]]
        return f"| {' | '.join(map(str, values))} |"


def git(*arguments: str) -> str:
    """The output of git in this repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def sha256(text: str) -> str:
    """The hexadecimal digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def environment(tree: Path, **values: str) -> dict[str, str]:
    """One thread, no GPU, and the sources of `tree` before an installed package."""
    ours = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **ours, **values}


@contextlib.contextmanager
def checked_out(revision: str | None, folder: Path) -> Iterator[Path]:
    """`folder` with the files of a revision, or of the working tree for None; fails where Python
    imports others from it."""
    if revision is not None:
        git("worktree", "add", "--quiet", "--detach", str(folder), revision)
    try:
        if revision is None:
            files = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
            for name in {f for f in files if f and (ROOT / f).is_file()}:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        command = [sys.executable, "-P", "-c", "import w2v2dist; print(w2v2dist.__file__)"]
        found = subprocess.check_output(command, env=environment(folder), text=True)
        if not Path(found.strip()).is_relative_to(folder):
            raise RuntimeError(f"{folder} was to be tried, but Python imports {found}")
        yield folder
    finally:
        if revision is not None:
            git("worktree", "remove", "--force", str(folder))


def build_shards(tree: Path, folder: Path) -> None:
    """Shards of 65 texts with 1 to 5 s of noise whose loudness changes like syllables."""
    source = folder / "audio"
    source.mkdir()
    for i in range(65):
        rng = np.random.default_rng(i)
        num_samples = int(rng.integers(16_000, 80_000))
        loudness = np.repeat(rng.random(-(-num_samples // 1_600)), 1_600)[:num_samples]
        noise = np.convolve(rng.standard_normal(num_samples), rng.standard_normal(32), "same")
        soundfile.write(source / f"u{i:03d}.flac", 0.02 * loudness * noise, 16_000)
        (source / f"u{i:03d}.txt").write_text(" ".join(rng.choice(WORDS, rng.integers(1, 4))))
    command = [sys.executable, "shards/build.py", "--input", str(source), "--shard-mb", "1"]
    command += ["--output", str(folder / "shards"), "--workers", "1"]
    settings: dict[str, Any] = {"cwd": tree, "env": environment(tree), "timeout": LIMIT_S}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **settings)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none where there is no file yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]


def train(tree: Path, case: Case, run: Path, stop_at: int | None = None) -> None:
    """Train by the sources of `tree` to the end, or until `stop_at` is logged and then SIGTERM to
    all ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = environment(tree, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    command = [sys.executable, "-m", "w2v2dist.cli", "train"]
    command += [str(case.folder / "config.yaml"), f"run_dir={run}"]
    expected, deadline = PREEMPTED if stop_at else 0, time.monotonic() + LIMIT_S
    log = case.folder / f"{run.name}.log"
    codes: list[int | None] = [None] * case.processes
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("a") as file:
            for rank in map(str, range(len(codes))):
                own = {**env, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(len(codes))}
                settings: dict[str, Any] = {"cwd": tree, "env": own, "start_new_session": True}
                ranks.append(subprocess.Popen(command, stdout=file, stderr=file, **settings))
        while None in (codes := [p.poll() for p in ranks]):
            failed = {*codes} - {None, expected}
            if failed or stopping.is_set() or time.monotonic() > deadline:
                break
            time.sleep(0.02)
            if stop_at and any(r["step"] >= stop_at for r in read(run / "metrics.jsonl")):
                stop_at = None
                for process in ranks:
                    process.send_signal(signal.SIGTERM)
    finally:
        for process in ranks:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its data workers as well
                process.wait()
    if codes != [expected] * len(codes):
        said = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{run.name}: exit statuses {codes}, not {expected}:\n{said}")


def numbers(case: Case, run: Path) -> dict[tuple[int, str], str]:
    """(step, name) -> JSON of all that a run logged, and a SHA-256 of the samples of each step."""
    out: dict[tuple[int, str], str] = {}
    for record in read(run / "metrics.jsonl"):
        for name, value in record.items():
            if name not in NOT_NUMBERS and not name.endswith("_seconds"):
                text = json.dumps(value)
                if out.setdefault((record["step"], name), text) != text:
                    raise RuntimeError(f"{run.name} logs two values of {name}: {record}")
    used: dict[int, set[str]] = defaultdict(set)
    for path in run.glob("logs/samples-*.jsonl"):
        for record in read(path):
            used[record["step"]].add(json.dumps(record, sort_keys=True))
    for step, lines in used.items():
        out[step, "samples"] = sha256("\n".join(sorted(lines)))
    steps = [*range(1, case.steps + 1)]
    validated = [s for s in steps if s % max(1, case.steps // 3) == 0 or s == case.steps]
    wanted = {"loss": steps, "grad_norm": steps, "samples": steps, "valid/loss": validated}
    for name, at in wanted.items():  # nothing is the same because it is nothing
        logged = sorted(step for (step, n), text in out.items() if n == name and text != "null")
        if logged != at:
            raise RuntimeError(f"{run.name} logs {name} at steps {logged}, not {at}")
    return out


def compare(line: Line, reference: Line) -> None:
    """Fill in what differs from all that the reference logs."""
    for (step, name), old in sorted(reference.numbers.items()):
        new = line.numbers.get((step, name), "missing")
        if new != old:
            line.differing.add(step)
            line.first = line.first or f"step {step}: {name} {old} -> {new}"
            with contextlib.suppress(ValueError):  # samples have no size
                a, b = float(old), float(new)
                line.largest = max(line.largest, abs(a - b) / max(abs(a), abs(b), 1e-300))


def try_case(case: Case, old: Path, new: Path) -> list[Line]:
    """The three trainings of a case; the first is the reference of the others."""
    case.folder.mkdir(parents=True)
    case.write()
    stop_at = max(1, case.steps * 2 // 5)
    runs = [case.folder / name for name in ("old", "old_then_new", "new")]
    train(old, case, runs[0], stop_at)
    shutil.copytree(runs[0], runs[1], symlinks=True)
    train(old, case, runs[0])
    train(new, case, runs[1])
    train(new, case, runs[2], stop_at)
    train(new, case, runs[2])
    lines: list[Line] = []
    for run, begun, resumed in zip(runs, *WHO, strict=True):
        events = read(run / "events.jsonl")
        saved = [e["step"] for e in events if e["event"] == "preempted"]
        if len(saved) != 1 or saved != [e["step"] for e in events if e["event"] == "resumed"]:
            raise RuntimeError(f"{run.name} was not interrupted and resumed once: {events}")
        lines.append(Line(case, begun, resumed, saved[0], numbers(case, run)))
        compare(lines[-1], lines[0])
    return lines


def try_all(cases: list[Case], old: Path, new: Path, jobs: int) -> tuple[list[str], list[str]]:
    """The rows of the table, and what went wrong; a line of progress for each case."""
    done: dict[Case, list[str]] = {}
    wrong: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        started = time.monotonic()
        futures = {pool.submit(try_case, case, old, new): case for case in cases}
        try:
            for future in as_completed(futures):
                case = futures[future]
                try:
                    lines = future.result()
                    done[case] = [line.row() for line in lines]
                    bad = [f"{i.begun} resumed by {i.resumed}, {i.first}" for i in lines if i.first]
                except RuntimeError as error:
                    done[case], bad = [], [str(error)]
                wrong += [f"{case}: {text}" for text in bad]
                seconds, said = time.monotonic() - started, "; ".join(bad) or "the same"
                print(f"[{len(done)}/{len(cases)}, {seconds:.0f} s] {case}: {said}", flush=True)
        finally:  # also where this command is told to end
            stopping.set()
            pool.shutdown(cancel_futures=True)
    return [row for case in cases for row in done[case]], wrong


def main() -> int:
    """Train by both commits, compare, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", metavar="OLD", help="git revision")
    parser.add_argument("new", metavar="NEW", nargs="?", help="default: the working tree")
    parser.add_argument("--output", type=Path, help="keeps runs and table.md (default: nothing)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1, help="cases at the same time")
    parser.add_argument("--only", default="", help='for example "pretrain, ZeRO 1, processes 3"')
    args = parser.parse_args()
    if args.output is not None and args.output.exists() and any(args.output.iterdir()):
        parser.error(f"{args.output} is not empty: what is in it would be resumed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and clean up
    started = time.monotonic()
    names = [git("rev-parse", "--short", r or "HEAD").strip() for r in (args.old, args.new)]
    names[1] += "" if args.new else " with the changes of the working tree"
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        output = (args.output or temporary / "output").resolve()
        output.mkdir(parents=True, exist_ok=True)
        old = stack.enter_context(checked_out(args.old, temporary / "old"))
        new = stack.enter_context(checked_out(args.new, temporary / "new"))
        build_shards(old, output)
        cases = [
            Case(*of, args.steps, output / "{}_zero{}_processes{}".format(*of))
            for of in itertools.product(CONFIGS, (0, 1, 2, 3), (1, 3))
        ]
        table, wrong = try_all([c for c in cases if args.only in str(c)], old, new, args.jobs)
        wrong = wrong if table else [*wrong, "nothing was compared"]
        seconds = time.monotonic() - started
        page = [
            f"# {'OTHER' if wrong else 'The same'} losses: OLD {names[0]}, NEW {names[1]}\n",
            f"{datetime.date.today()} · {os.cpu_count()} CPU cores, gloo, fp32 · {seconds:.0f} s · "
            f"`python benchmarks/same_losses.py {' '.join(sys.argv[1:])}`\n",
            *(f"| {' | '.join(COLUMNS)} |", f"|{'-|' * len(COLUMNS)}", *table, ""),
            *(f"- {text}" for text in wrong),
        ]
        (output / "table.md").write_text("\n".join(page), encoding="utf-8")
        print("\n".join(page))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

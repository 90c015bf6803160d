"""The stages of benchmarks/gpu.py. Each returns what it found, as JSON can hold it, or raises with
the reason; what is missing on the machine and does not stop it is a note."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT, machine

Found = dict[str, Any]
PACKAGES = ("numpy", "yaml", "soundfile", "miniaudio", "rich")  # of whatever imports w2v2dist


@dataclass(kw_only=True)
class Kit:
    """What the stages share: where results go, and how large things are."""

    output: Path
    tiny: bool
    input: Path | None = None
    notes: list[str] = field(default_factory=list)

    def needs(self, *packages: str) -> None:
        """Raise RuntimeError where a package is missing."""
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            raise RuntimeError(f"not installed: {', '.join(missing)}: pip install them")

    def needs_gpu(self) -> None:
        """Raise RuntimeError where there is none to measure; a rehearsal needs none."""
        if not self.tiny and not torch.cuda.is_available():
            raise RuntimeError("no GPU that torch can use: look at the driver, or pass --tiny")

    def precisions(self) -> list[str]:
        """bf16 and fp16, without what the device does not have."""
        if not torch.cuda.is_available():
            return ["fp32"]
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ["bf16", "fp16"]
        self.note("this GPU has no bf16: fp16 alone is measured")
        return ["fp16"]

    def note(self, text: str) -> None:
        """Say it on the page too."""
        print(f"note: {text}", flush=True)
        self.notes.append(text)

    @property
    def shards_folder(self) -> Path:
        """Where they lie: other recordings are other shards."""
        kind = "made-tiny" if self.tiny else "made"
        if self.input:
            kind = f"given-{hashlib.sha256(str(self.input).encode()).hexdigest()[:8]}"
        return self.output / f"shards-{kind}"

    def shards(self) -> Path:
        """Shards of --input, or of made noise; built once for all stages."""
        from benchmarks.speechlike import build_shards, write_recordings

        folder = self.shards_folder
        if (folder / "index.json").exists():
            return folder
        with tempfile.TemporaryDirectory() as made:
            seconds = (1.5, 4.0) if self.tiny else (10.0, 16.0)
            count = 40 if self.tiny else 400
            source = self.input or write_recordings(Path(made), count, seconds)
            return build_shards(source, folder, 1 if self.tiny else 64)


def python(*arguments: str, check: bool = True) -> str:
    """The output of a Python program of this checkout, which is shown as well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    print(done.stdout, flush=True)
    if check and done.returncode:
        raise RuntimeError(f"python {arguments[0]} ended with status {done.returncode}")
    return done.stdout


def machine_stage(kit: Kit) -> Found:
    """GPU, driver, versions, commit; and which of what the other stages use is not installed."""
    kit.needs_gpu()
    used = "transformers deepspeed soundfile webdataset pytest miniaudio triton".split()
    missing = [name for name in used if importlib.util.find_spec(name) is None]
    for name in missing:
        kit.note(f"not installed: {name}")
    compilers = [c for c in ("g++", "cc") if any(Path(d, c).exists() for d in os.get_exec_path())]
    if not compilers:
        kit.note("no C++ compiler: torch.compile and Triton cannot build their kernels")
    return machine() | {"missing": missing, "compilers": compilers}


def tests_stage(kit: Kit) -> Found:
    """pytest tests/gpu; where there is no GPU all of them are skipped, which is counted."""
    kit.needs("pytest")
    kit.needs_gpu()
    said = python("-m", "pytest", "tests/gpu", "-q", "--tb=short", "-p", "no:cacheprovider",
                  check=False)  # fmt: skip
    last = said.strip().splitlines()[-1]
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    found = {"counts": counts, "last_line": last}
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)$", said, re.MULTILINE)
    if failures or not counts:
        raise RuntimeError(f"{last}; {'; '.join(failures)[:500]}")
    return found


def run_step(kit: Kit, model: str, precision: str, *more: str) -> Found:
    """What benchmarks/step.py finds; an engine that fails is a row of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.json"
        arguments = ["--model", "tiny" if kit.tiny else model, "--precision", precision]
        arguments += ["--repeat", "2" if kit.tiny else "15", "--timeout", "200", *more]
        arguments += ["--rows", "2", "--threads", "1"] if kit.tiny else []
        python("benchmarks/step.py", *arguments, "--json", str(path), check=False)
        if not path.exists():
            raise RuntimeError("benchmarks/step.py wrote nothing")
        found: Found = json.loads(path.read_text(encoding="utf-8"))
    for engine in found["engines"]:
        if engine["error"]:
            kit.note(f"{model} in {precision}, {engine['engine']}: {engine['error']}")
    if all("seconds" not in e for e in found["engines"] if e["engine"] == "ours"):
        ours = next(e["error"] for e in found["engines"] if e["engine"] == "ours")
        raise RuntimeError(f"{model} in {precision} has no step of ours: {ours}")
    return found


def step_stage(model: str) -> Callable[[Kit], Found]:
    """A step of BASE or LARGE at the paper's samples a GPU, beside Hugging Face's."""

    def stage(kit: Kit) -> Found:
        kit.needs_gpu()
        kit.needs(*PACKAGES)
        engines = ("--engine", "ours", "--engine", "huggingface", "--optimizer")
        return {"runs": [run_step(kit, model, p, *engines) for p in kit.precisions()]}

    return stage


def profile_stage(kit: Kit) -> Found:
    """Where the time of our step goes."""
    kit.needs_gpu()
    kit.needs(*PACKAGES)
    precision = kit.precisions()[0]
    models = ["base"] if kit.tiny else ["base", "large"]
    runs = [run_step(kit, m, precision, "--engine", "ours", "--parts") for m in models]
    return {"runs": runs}


def loader_stage(kit: Kit) -> Found:
    """Tars to micro-batches on this machine's cores."""
    kit.needs(*PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loader.json"
        size = ["--hours", "0.01", "--repeat", "1", "--workers", "1"] if kit.tiny else []
        size = size or ["--hours", "0.3", "--repeat", "3"]
        shards = str(kit.shards())
        python("benchmarks/loader.py", "--shards", shards, *size, "--json", str(path))
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def roofline_stage(kit: Kit) -> Found:
    """What the roofline predicts of one slot on one process, which is what the step stages measure;
    the page shows it beside them."""
    if not (ROOT / "benchmarks" / "roofline.py").exists():
        raise RuntimeError("benchmarks/roofline.py is not in this checkout")
    return {"output": python("benchmarks/roofline.py", "--world-size", "1",
                             "data.virtual_world_size=1")}  # fmt: skip


def decode_stage(kit: Kit) -> Found:
    """Utterances a second: log-probabilities of a small model, greedy, and beams on simulated
    emissions without and with a small Transformer language model."""
    kit.needs_gpu()
    kit.needs(*PACKAGES)
    from benchmarks.gpu_decode import decode_rates

    return decode_rates(kit.shards(), 20 if kit.tiny else 200)


def train_stage(kit: Kit) -> Found:
    """A real training, ZeRO 0 to 3, unbroken and resumed from its middle."""
    kit.needs_gpu()
    kit.needs(*PACKAGES, "deepspeed")
    from benchmarks.gpu_train import trainings

    return trainings(kit.shards(), kit.precisions()[0], kit.tiny)


STAGES: dict[str, Callable[[Kit], Found]] = {
    "machine": machine_stage,
    "tests": tests_stage,
    "step_base": step_stage("base"),
    "step_large": step_stage("large"),
    "profile": profile_stage,
    "train": train_stage,
    "loader": loader_stage,
    "roofline": roofline_stage,
    "decode": decode_stage,
}

"""What a measurement was made on, and how results are kept: shared by the benchmarks."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# Dense 16-bit TFLOP/s of the data sheets; the first name that the GPU's contains
PEAKS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "L40S": 362, "L40": 181, "L4": 121, "A10": 125, "V100": 125, "T4": 65,
}  # fmt: skip


def machine() -> dict[str, Any]:
    """Date, commit, processor, memory, GPU and versions, as JSON can hold them."""
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "num_gpus": torch.cuda.device_count(),
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def cpu_name() -> str:
    """The processor, and the widest of the instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    flags = values.get("flags", "").split()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bf16", "avx512f": "AVX-512"}
    known = [text for flag, text in {**names, "avx2": "AVX2"}.items() if flag in flags]
    return ", ".join([values.get("model name", platform.machine()), *known[:1]])


def commit() -> str:
    """The commit of this checkout, and whether files differ from it."""
    number = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{number} with changes" if changed else number


def _output(*command: str) -> str:
    """The first line that a command prints; "" where it is not there or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip().split("\n")[0]
    return ""


def peak_flops(gpu: str | None) -> float | None:
    """FLOP/s of the data sheet in 16 bits; None where the GPU is not in PEAKS."""
    return next((1e12 * p for name, p in PEAKS.items() if gpu and name in gpu), None)


def write_json(path: Path, content: Any) -> None:
    """All of it, or the file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [columns, ["-"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(v) for v in line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The median and the range of some seconds."""
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return f"{middle:.{digits}g} ({ordered[0]:.{digits}g}–{ordered[-1]:.{digits}g})"

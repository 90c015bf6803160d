"""Peak memory, time and share of the matrix rate of one forward and backward pass of BASE or LARGE.

    python benchmarks/model_step.py --model base
    python benchmarks/model_step.py --model large --activation-checkpointing --precision bf16

One micro-batch of the paper's size: 5 crops of 250,000 samples (BASE, 1.4M a GPU) or 3 of 320,000
(LARGE, 1.2M a GPU), on the GPU where there is one, without LayerDrop. Every measurement runs in its
own process, so that peak memory is its own. Prints one row of a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from w2v2dist.model import (
    Wav2Vec2Config,
    Wav2Vec2ForPretraining,
    distractor_positions,
    span_mask,
)
from w2v2dist.tasks.train import read_config

CONFIGS = Path(__file__).parents[1] / "configs"
# Configuration, rows and samples a row
MODELS = {"base": ("base_ls960", 5, 250_000), "large": ("large_lv60k", 3, 320_000)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADER = (
    "| model | batch | device | precision | recomputation | GFLOP | step s | matrix GFLOP/s "
    "| share of matrix rate | peak GiB |\n|-|-|-|-|-|-|-|-|-|-|"
)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of 5."""
    size = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()
    best = float("inf")
    for _ in range(6):  # the first one warms up
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def make_batch(config: Wav2Vec2Config, rows: int, num_samples: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    mask = span_mask(rng, config.num_frames(num_samples), rows, config)
    drawn = distractor_positions(rng, int(mask[0].sum()), rows, config.num_distractors)
    waveforms = rng.standard_normal((rows, num_samples), np.float32)
    arrays = {"waveforms": waveforms, "mask": mask, "distractors": drawn}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def count_flops(config: Wav2Vec2Config, rows: int, num_samples: int) -> int:
    """Matrix and convolution FLOP of the body without recomputation, from shapes alone.

    Three times the forward pass: backward costs two. Quantizer and logits (under 1 %) are left out.
    """
    inputs = make_batch(config, rows, num_samples)
    with torch.device("meta"):
        model = Wav2Vec2ForPretraining(config).eval()
    drop = [False] * config.num_layers
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        frames = model.encoder.feature_encoder(inputs["waveforms"].to("meta")).transpose(1, 2)
        x = model.encoder.feature_projection(model.encoder.layer_norm(frames))
        model.encoder.context_network(x, None, drop)
    return 3 * counter.get_total_flops()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The median of `--repeat` passes, on the GPU after one that warms up."""
    name, rows, num_samples = MODELS[args.model]
    config = dataclasses.replace(
        read_config(CONFIGS / f"{name}.yaml", []).model,
        layer_drop=0.0,
        activation_checkpointing=args.activation_checkpointing,
    )
    device, dtype = ("cuda" if torch.cuda.is_available() else "cpu"), DTYPES[args.precision]
    rate, flops = matrix_rate(device, dtype), count_flops(config, rows, num_samples)
    torch.manual_seed(0)
    model = Wav2Vec2ForPretraining(config).to(device, dtype)
    inputs = {
        name: tensor.to(device) for name, tensor in make_batch(config, rows, num_samples).items()
    }
    drop, seconds = [False] * config.num_layers, []
    for _ in range(args.repeat + (device == "cuda")):
        model.zero_grad(set_to_none=True)
        synchronize(device)
        start = time.perf_counter()
        out = model(**inputs, drop_layers=drop)
        (out.loss / out.num_masked).backward()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        seconds, peak = seconds[1:], torch.cuda.max_memory_allocated()
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return {
        "batch": f"{rows} × {num_samples:,}",
        "device": name,
        "gflop": flops / 1e9,
        "seconds": statistics.median(seconds),
        "rate": rate / 1e9,
        "peak": peak / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--measure"]
    lines = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    r = json.loads(lines[-1])
    share = r["gflop"] / r["seconds"] / r["rate"]
    recomputation = "yes" if args.activation_checkpointing else "no"
    print(HEADER)
    print(
        f"| {args.model} | {r['batch']} | {r['device']} | {args.precision} | {recomputation} "
        f"| {r['gflop']:,.0f} | {r['seconds']:.3g} | {r['rate']:,.0f} | {share:.0%} "
        f"| {r['peak']:.1f} |"
    )


if __name__ == "__main__":
    main()

"""What the paper's layouts ask of a loader, at the step that the roofline predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.jobs.devices import DEVICES
from w2v2dist.jobs.roofline import predict
from w2v2dist.tasks.train import read_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Configuration, GPUs, GPUs of a node
LAYOUTS = {"BASE": ("base_ls960", 64, 8), "LARGE": ("large_lv60k", 128, 8)}


def needs(step_seconds: float | None) -> dict[str, dict[str, float]]:
    """Hours of audio a second that a node of H100s reads in the paper's layouts."""
    out = {}
    for name, (config_name, gpus, per_node) in LAYOUTS.items():
        config: Any = read_config(
            CONFIGS / f"{config_name}.yaml", [f"data.virtual_world_size={gpus}"]
        )
        predicted = predict(config, DEVICES["h100"], gpus, gpus // per_node)
        seconds = step_seconds or predicted.step_seconds
        hours = per_node * config.data.max_samples_per_slot / (3600 * SAMPLE_RATE)
        out[name] = {"gpus": gpus, "step_seconds": seconds, "hours_per_second": hours / seconds}
    return out

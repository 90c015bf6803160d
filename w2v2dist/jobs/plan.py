"""What a job would need, from its configuration alone: memory, data rate, time, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.tasks.finetune import FinetuneConfig
from w2v2dist.tasks.pretrain import PretrainConfig

ASSUMED_UTILISATION = 0.4  # of a GPU's peak; measure it, the plan only needs an order of magnitude
FLAC_BYTES_PER_HOUR = 66e6  # Libri-Light: 53,000 h are 3.5 TB
GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The estimates of one job; bytes and FLOPs are floats."""

    task: str
    num_nodes: int
    num_processes: int
    slots_per_process: int
    num_slots: int
    hours_per_step: float  # at most: micro-batches that end before max_samples_per_slot hold less
    num_parameters: int
    # of one process: weights, gradients and optimizer, partitioned as the ZeRO stage says
    state_bytes: float
    activation_bytes: float  # of one process, one micro-batch
    checkpoint_bytes: float
    step_flops: float
    step_seconds: float  # assumed
    max_steps: int
    formula: str

    def lines(self, gpu_memory_gib: float) -> list[str]:
        """The plan in words."""
        memory = (self.state_bytes + self.activation_bytes) / GIB
        fits = "fits in" if memory < 0.9 * gpu_memory_gib else "does NOT fit in"
        parts = (
            f"{self.state_bytes / GIB:.1f} state + {self.activation_bytes / GIB:.1f} activations"
        )
        hours = self.hours_per_step / self.num_nodes
        megabytes = hours * FLAC_BYTES_PER_HOUR / 1e6
        empty = self.slots_per_process * self.num_processes - self.num_slots
        idle = f", {empty} of the step's places idle" if empty else ""
        days = self.max_steps * self.step_seconds / 86_400
        million = self.num_parameters / 1e6
        rate = f"{hours / self.step_seconds:.3f} h/s, {megabytes / self.step_seconds:.1f} MB/s"
        pflop = self.step_flops / 1e15
        values = {
            "task": f"{self.task}, {million:.1f} M parameters, {self.max_steps:,} steps",
            "processes": f"{self.num_processes} on {self.num_nodes} nodes",
            "slots": f"{self.num_slots} a step, {self.slots_per_process} per GPU{idle}",
            "audio per step": f"{self.hours_per_step:.2f} h at most",
            "memory per GPU": f"{memory:.1f} GiB ({parts}), {fits} {gpu_memory_gib:g} GiB",
            "": self.formula,
            "step time": f"{self.step_seconds:.2f} s ASSUMED: {pflop:.2f} PFLOP at "
            f"{ASSUMED_UTILISATION:.0%} of the GPUs' peak; {days:.1f} days in all",
            "data per node": f"{hours:.3f} h ({megabytes:.1f} MB of FLAC) a step; {rate}, if so",
            "checkpoint": f"{self.checkpoint_bytes / 1e9:.2f} GB (fp32 weights, both Adam moments)",
        }
        return [f"{name:<16}{value}" for name, value in values.items()]


def make_plan(
    config: PretrainConfig | FinetuneConfig, num_nodes: int, tasks_per_node: int, peak_tflops: float
) -> Plan:
    """Estimate a job of `num_nodes` × `tasks_per_node` processes. ValueError if too many."""
    num_processes = num_nodes * tasks_per_node
    virtual = VirtualRanks(config.data.virtual_world_size)
    rounds = virtual.num_rounds(num_processes)
    num_parameters, num_conv = count_parameters(config.model, config.task)
    samples = config.data.max_samples_per_slot
    flops = slot_flops(config.model, num_parameters - num_conv, samples, config.data.max_crop)
    narrow = config.engine.precision != "fp32"
    activations, formula = activation_bytes(config.model, samples, 2 if narrow else 4)
    # weights, gradients (accumulated in fp32), optimizer (two moments, and the fp32 master of
    # 16-bit weights)
    parts = [2.0 if narrow else 4.0, 4.0, 12.0 if narrow else 8.0]
    for part, stage in ((2, 1), (1, 2), (0, 3)):
        if config.engine.zero_stage >= stage:
            parts[part] /= num_processes
    return Plan(
        task=config.task,
        num_nodes=num_nodes,
        num_processes=num_processes,
        slots_per_process=rounds,
        num_slots=virtual.num_slots,
        hours_per_step=virtual.num_slots * samples / SAMPLE_RATE / 3600,
        num_parameters=num_parameters,
        state_bytes=sum(parts) * num_parameters,
        activation_bytes=activations,
        checkpoint_bytes=12.0 * num_parameters,
        step_flops=virtual.num_slots * flops,
        step_seconds=rounds * flops / (ASSUMED_UTILISATION * peak_tflops * 1e12),
        max_steps=config.loop.max_steps,
        formula=formula,
    )


def count_parameters(config: Wav2Vec2Config, task: str) -> tuple[int, int]:
    """Parameters of the whole model and of its feature encoder, without allocating them."""
    with torch.device("meta"):
        model = Wav2Vec2ForPretraining(config) if task == "pretrain" else Wav2Vec2ForCTC(config, 32)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), sum(n for name, n in sizes.items() if "feature_encoder" in name)


def slot_flops(config: Wav2Vec2Config, num_dense: int, num_samples: int, max_crop: int) -> float:
    """Of a micro-batch: 6 × dense parameters × frames + attention + convolutions."""
    frames = num_samples / config.total_stride
    attention = 12 * frames * config.num_frames(max_crop) * config.embed_dim * config.num_layers
    convolutions, length, channels_in = 0.0, float(num_samples), 1
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        length /= stride
        convolutions += 6 * length * kernel * channels_in * config.conv_channels
        channels_in = config.conv_channels
    return 6 * num_dense * frames + attention + convolutions


def activation_bytes(config: Wav2Vec2Config, num_samples: int, width: int) -> tuple[float, str]:
    """What a micro-batch keeps for its backward pass, roughly, and the formula in words.

    A value has `width` bytes. A Transformer layer with fused attention keeps about 17 values per
    frame and channel, a convolution 3 per output (its own, the norm's, GELU's). Checkpointing keeps
    each layer's input and the inside of one.
    """
    frames = num_samples / config.total_stride
    layer = 17 * frames * config.embed_dim
    layers = config.num_layers * layer
    formula = f"rough: {width} bytes x (17 x frames x width x layers + 3 x convolution outputs)"
    if config.activation_checkpointing:
        layers = config.num_layers * frames * config.embed_dim + layer
        formula = (
            f"rough: {width} bytes x (frames x width x (layers + 17) + 3 x convolution outputs)"
        )
    convolutions, length = 0.0, float(num_samples)
    for stride in config.conv_strides:
        length /= stride
        convolutions += 3 * length * config.conv_channels
    return width * (layers + convolutions), formula

"""What a job would need, from its configuration alone: memory, data rate, time, checkpoints."""

from dataclasses import dataclass
from itertools import accumulate
from operator import truediv

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

    config: PretrainConfig | FinetuneConfig
    num_nodes: int
    num_processes: int
    slots_per_process: int
    hours_per_step: float  # at most: micro-batches that end before max_samples_per_slot hold less
    num_parameters: int
    # of one process: weights, gradients and optimizer, partitioned as the ZeRO stage says
    state_bytes: float
    activation_bytes: float  # of one process, one micro-batch
    checkpoint_bytes: float
    step_flops: float
    step_seconds: float  # assumed
    formula: str

    def lines(self, gpu_memory_gib: float) -> list[str]:
        """The plan in words."""
        state, kept = self.state_bytes / GIB, self.activation_bytes / GIB
        memory = f"{state + kept:.1f} GiB ({state:.1f} state + {kept:.1f} activations)"
        fits = "fits in" if state + kept < 0.9 * gpu_memory_gib else "does NOT fit in"
        hours, seconds = self.hours_per_step / self.num_nodes, self.step_seconds
        megabytes = hours * FLAC_BYTES_PER_HOUR / 1e6
        rate = f"{hours / seconds:.3f} h/s, {megabytes / seconds:.1f} MB/s"
        steps, num_slots = self.config.loop.max_steps, self.config.data.virtual_world_size
        empty = self.slots_per_process * self.num_processes - num_slots
        idle = f", {empty} of the step's places idle" if empty else ""
        million, days = self.num_parameters / 1e6, steps * seconds / 86_400
        values = {
            "task": f"{self.config.task}, {million:.1f} M parameters, {steps:,} steps",
            "processes": f"{self.num_processes} on {self.num_nodes} nodes",
            "slots": f"{num_slots} a step, {self.slots_per_process} per GPU{idle}",
            "audio per step": f"{self.hours_per_step:.2f} h at most",
            "memory per GPU": f"{memory}, {fits} {gpu_memory_gib:g} GiB",
            "": self.formula,
            "step time": f"{seconds:.2f} s ASSUMED: {self.step_flops / 1e15:.2f} PFLOP at "
            f"{ASSUMED_UTILISATION:.0%} of the GPUs' peak; {days:.1f} days in all",
            "data per node": f"{hours:.3f} h ({megabytes:.1f} MB of FLAC) a step; {rate}, if so",
            "checkpoint": f"{self.checkpoint_bytes / 1e9:.2f} GB (fp32 weights, both Adam moments)",
        }
        return [f"{name:<16}{value}" for name, value in values.items()]


def make_plan(
    config: PretrainConfig | FinetuneConfig, num_nodes: int, tasks_per_node: int, peak_tflops: float
) -> Plan:
    """Estimate a job of `num_nodes` × `tasks_per_node` processes. ValueError if too many."""
    num_processes, num_slots = num_nodes * tasks_per_node, config.data.virtual_world_size
    rounds = VirtualRanks(num_slots).num_rounds(num_processes)
    num_parameters, num_conv = count_parameters(config.model, config.task)
    samples = config.data.max_samples_per_slot
    flops = slot_flops(config.model, num_parameters - num_conv, samples, config.data.max_crop)
    narrow = config.engine.precision != "fp32"
    activations, formula = activation_bytes(config.model, samples, 2 if narrow else 4)
    # weights, gradients (summed in fp32), optimizer (two moments, fp32 master of 16-bit weights)
    parts = [2.0 if narrow else 4.0, 4.0, 12.0 if narrow else 8.0]
    for part, stage in ((2, 1), (1, 2), (0, 3)):
        if config.engine.zero_stage >= stage:
            parts[part] /= num_processes
    return Plan(
        config=config,
        num_nodes=num_nodes,
        num_processes=num_processes,
        slots_per_process=rounds,
        hours_per_step=num_slots * samples / SAMPLE_RATE / 3600,
        num_parameters=num_parameters,
        state_bytes=sum(parts) * num_parameters,
        activation_bytes=activations,
        checkpoint_bytes=12.0 * num_parameters,
        step_flops=num_slots * flops,
        step_seconds=rounds * flops / (ASSUMED_UTILISATION * peak_tflops * 1e12),
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
    convolutions, channels_in = 0.0, 1
    for kernel, outputs in zip(config.conv_kernels, _conv_frames(config, num_samples), strict=True):
        convolutions += 6 * outputs * kernel * channels_in * config.conv_channels
        channels_in = config.conv_channels
    return 6 * num_dense * frames + attention + convolutions


def activation_bytes(config: Wav2Vec2Config, num_samples: int, width: int) -> tuple[float, str]:
    """What a micro-batch keeps for its backward pass, roughly, and the formula in words. A value is
    `width` bytes. A Transformer layer with fused attention keeps about 17 values per frame and
    channel, a convolution 3 per output (its own, the norm's, GELU's). Checkpointing keeps each
    layer's input and the inside of one."""
    per_channel, formula = 17 * config.num_layers, "17 x frames x width x layers"
    if config.activation_checkpointing:
        per_channel, formula = config.num_layers + 17, "frames x width x (layers + 17)"
    layers = per_channel * config.embed_dim * num_samples / config.total_stride
    convolutions = 3 * config.conv_channels * sum(_conv_frames(config, num_samples))
    formula = f"rough: {width} bytes x ({formula} + 3 x convolution outputs)"
    return width * (layers + convolutions), formula


def _conv_frames(config: Wav2Vec2Config, num_samples: int) -> list[float]:
    """Frames after each convolution."""
    return [*accumulate(config.conv_strides, truediv, initial=float(num_samples))][1:]

"""What a job would need, from its configuration alone: memory, data rate, time, checkpoints."""

from dataclasses import dataclass
from itertools import accumulate
from operator import truediv
from pathlib import Path

import torch

from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.vocabulary import read_vocabulary
from w2v2dist.model import (
    TransformerLanguageModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPretraining,
)
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.tasks.finetune import FinetuneConfig
from w2v2dist.tasks.language_model import LanguageModelingConfig
from w2v2dist.tasks.pretrain import PretrainConfig

ASSUMED_UTILISATION = 0.4  # of a GPU's peak; measure it, the plan only needs an order of magnitude
FLAC_BYTES_PER_HOUR = 66e6  # Libri-Light: 53,000 h are 3.5 TB
GIB = 2**30
Config = PretrainConfig | FinetuneConfig | LanguageModelingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a micro-batch of a training is, at most, and costs."""

    amount: float  # hours of audio, or tokens: those that end before the limit hold less
    num_parameters: int
    flops: float
    activation_bytes: float
    formula: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The estimates of one job; bytes and FLOPs are floats."""

    config: Config
    num_nodes: int
    num_processes: int
    slots_per_process: int
    work: Work  # of one process, one micro-batch
    # of one process: weights, gradients and optimizer, partitioned as the ZeRO stage says
    state_bytes: float
    step_seconds: float  # assumed

    @property
    def amount_per_step(self) -> float:
        """Hours of audio, or tokens."""
        return self.work.amount * self.config.data.virtual_world_size

    def lines(self, gpu_memory_gib: float) -> list[str]:
        """The plan in words."""
        state, kept = self.state_bytes / GIB, self.work.activation_bytes / GIB
        memory = f"{state + kept:.1f} GiB ({state:.1f} state + {kept:.1f} activations)"
        fits = "fits in" if state + kept < 0.9 * gpu_memory_gib else "does NOT fit in"
        seconds, flops = self.step_seconds, self.work.flops * self.config.data.virtual_world_size
        steps, num_slots = self.config.loop.max_steps, self.config.data.virtual_world_size
        empty = self.slots_per_process * self.num_processes - num_slots
        idle = f", {empty} of the step's places idle" if empty else ""
        million, days = self.work.num_parameters / 1e6, steps * seconds / 86_400
        checkpoint = 12 * self.work.num_parameters / 1e9
        values = {
            "task": f"{self.config.task}, {million:.1f} M parameters, {steps:,} steps"
            f"{self.work.note}",
            "processes": f"{self.num_processes} on {self.num_nodes} nodes",
            "slots": f"{num_slots} a step, {self.slots_per_process} per GPU{idle}",
            **self._amount(),
            "memory per GPU": f"{memory}, {fits} {gpu_memory_gib:g} GiB",
            "": self.work.formula,
            "step time": f"{seconds:.2f} s ASSUMED: {flops / 1e15:.2f} PFLOP at "
            f"{ASSUMED_UTILISATION:.0%} of the GPUs' peak; {days:.1f} days in all",
            **self._data_rate(),
            "checkpoint": f"{checkpoint:.2f} GB (fp32 weights, both Adam moments)",
        }
        return [f"{name:<16}{value}" for name, value in values.items()]

    def _amount(self) -> dict[str, str]:
        """How much a step trains on."""
        if isinstance(self.config, LanguageModelingConfig):
            return {"tokens per step": f"{self.amount_per_step:,.0f} at most"}
        return {"audio per step": f"{self.amount_per_step:.2f} h at most"}

    def _data_rate(self) -> dict[str, str]:
        """How much of it a node reads; of text that is next to nothing."""
        if isinstance(self.config, LanguageModelingConfig):
            return {}
        hours = self.amount_per_step / self.num_nodes
        megabytes = hours * FLAC_BYTES_PER_HOUR / 1e6
        rate = f"{hours / self.step_seconds:.3f} h/s, {megabytes / self.step_seconds:.1f} MB/s"
        per_step = f"{hours:.3f} h ({megabytes:.1f} MB of FLAC) a step"
        return {"data per node": f"{per_step}; {rate}, if so"}


def make_plan(config: Config, num_nodes: int, tasks_per_node: int, peak_tflops: float) -> Plan:
    """Estimate a job of `num_nodes` × `tasks_per_node` processes. ValueError if too many."""
    num_processes, num_slots = num_nodes * tasks_per_node, config.data.virtual_world_size
    rounds = VirtualRanks(num_slots).num_rounds(num_processes)
    narrow = config.engine.precision != "fp32"
    texts = isinstance(config, LanguageModelingConfig)
    work = text_work(config) if texts else speech_work(config)  # type: ignore[arg-type]
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
        work=work,
        state_bytes=sum(parts) * work.num_parameters,
        step_seconds=rounds * work.flops / (ASSUMED_UTILISATION * peak_tflops * 1e12),
    )


def speech_work(config: PretrainConfig | FinetuneConfig) -> Work:
    """Of a micro-batch of audio."""
    num_parameters, num_conv = count_parameters(config.model, config.task)
    samples = config.data.max_samples_per_slot
    width = 2 if config.engine.precision != "fp32" else 4
    activations, formula = activation_bytes(config.model, samples, width)
    return Work(
        amount=samples / SAMPLE_RATE / 3600,
        num_parameters=num_parameters,
        flops=slot_flops(config.model, num_parameters - num_conv, samples, config.data.max_crop),
        activation_bytes=activations,
        formula=formula,
    )


def text_work(config: LanguageModelingConfig) -> Work:
    """Of a micro-batch of text: 6 × parameters of the layers and the first cluster's softmax (the
    others' words are rare) × tokens + attention to what is before, half of a sentence. The logits
    of the first cluster are kept in the model's precision and in fp32, and have gradients."""
    model, tokens = config.model, config.data.max_tokens_per_slot
    num_words, note = _num_words(config)
    with torch.device("meta"):
        module = TransformerLanguageModel(model, num_words)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    layers = sum(n for name, n in sizes.items() if name.startswith("layers."))
    head = module.words.bounds[1] * model.embed_dim
    attention = 6 * tokens * config.data.max_tokens * model.embed_dim * model.num_layers
    width = 2 if config.engine.precision != "fp32" else 4
    of_layers = 17 * model.num_layers
    formula = "17 x tokens x width x layers"
    if model.activation_checkpointing:
        of_layers, formula = model.num_layers + 17, "tokens x width x (layers + 17)"
    logits = (width + 8) * tokens * module.words.bounds[1]
    return Work(
        amount=tokens,
        num_parameters=sum(sizes.values()),
        flops=6.0 * (layers + head) * tokens + attention,
        activation_bytes=float(width * of_layers * model.embed_dim * tokens + logits),
        formula=f"rough: {width} bytes x {formula} + {width + 8} x logits of the first cluster",
        note=note,
    )


def _num_words(config: LanguageModelingConfig) -> tuple[int, str]:
    """Ids of the vocabulary, and a note where that is not made yet: two fifths more than the last
    cut-off, as in the paper's model."""
    path = Path(config.data.vocabulary)
    if config.data.vocabulary != "auto" and path.is_file():
        return len(read_vocabulary(path, config.data.units)), ""
    number = (config.model.cutoffs or (10_000,))[-1] * 7 // 5
    return number, f"; a vocabulary of {number:,} {config.data.units} ASSUMED"


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

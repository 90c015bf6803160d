"""A training step on paper: time, memory and traffic of a device, from the configuration alone.

Every kernel takes the longer of its arithmetic at the device's rate and its bytes at the memory's
bandwidth, and a little for its start; a step's are added up. Nothing of it is measured, but for the
CPU's rates. It knows no stalls of data, no stragglers and no memory that is fragmented.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from w2v2dist.jobs import zero
from w2v2dist.jobs.devices import GIB, LINKS, Device, Link
from w2v2dist.jobs.graph import ATTENTION, FFN, PARTS, POINTWISE, Operator
from w2v2dist.jobs.work import Config, Work, work_of
from w2v2dist.runtime.distributed import VirtualRanks

OPTIMIZER = "optimizer"
IN_LAYERS = (ATTENTION, FFN, POINTWISE)  # what LayerDrop skips
USABLE = 0.92  # of a device's memory: the rest is lost between tensors (fragmentation)
# Of the rate of matrix products. GPUs: cuDNN's 1-d convolutions take half of it, the first one has
# no use for tensor cores (its share is of fp32), the grouped one is cuDNN's slow path. CPUs:
# oneDNN's. Expectations, to be replaced by a profile.
SHARES = {
    True: {"convolution": 0.5, "convolution of one channel": 0.3, "grouped convolution": 0.12},
    False: {"convolution": 1.0, "convolution of one channel": 0.3, "grouped convolution": 0.4},
}
TURNED = 2.0  # a copy that turns memory reads it in pieces: half of the bandwidth


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of a step on one process."""

    seconds: float
    flops: float
    bytes: float
    kernels: float
    memory_share: float  # of the seconds: in kernels that the memory bounds

    @property
    def bound(self) -> str:
        """What a device must have more of to be faster: memory (bandwidth) or arithmetic."""
        return "memory" if self.memory_share > 0.5 else "arithmetic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One step on one process: predicted, not measured."""

    device: Device
    world_size: int
    num_rounds: int  # micro-batches of a process
    num_parameters: int
    note: str  # what is assumed beside
    amount: int  # of one micro-batch: samples, or tokens
    fused: bool  # element-wise chains are one kernel
    step_seconds: float
    compute_seconds: float  # of the device, if nothing made it wait
    launch_seconds: float  # of the host, which launches kernels while others run
    exchange_seconds: float
    exposed_seconds: float  # of the exchange: what no computation hides
    sent_bytes: float
    memory: zero.Memory
    peak_flops: float  # what utilisation is a share of: 16 bits on GPUs, the precision's on CPUs
    flops: float  # of products, convolutions, attention, with what backward computes anew
    model_flops: float  # without that: what utilisation is counted with
    kernels: float
    parts: dict[str, Part]

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation: share of `peak_flops`."""
        return self.model_flops / self.step_seconds / self.peak_flops

    @property
    def memory_bytes(self) -> float:
        """At its fullest."""
        return self.memory.total

    @property
    def kept_bytes(self) -> float:
        """For the backward pass."""
        return self.memory.kept

    @property
    def fits(self) -> bool:
        """Whether the device's memory takes it."""
        return self.memory.total <= USABLE * self.device.memory_bytes

    @property
    def remedy(self) -> str:
        """What helps where it does not fit; "" where it does."""
        if self.fits:
            return ""
        need, have = self.memory.total / USABLE / GIB, self.device.memory_bytes / GIB
        ways = [
            "model.activation_checkpointing=true",
            "half of data.max_samples_per_slot with twice data.virtual_world_size",
        ]
        stage = ["a higher engine.zero_stage"]
        ways = stage + ways if self.memory.state > self.memory.kept else ways + stage
        return f"needs {need:.1f} GiB of {have:.1f}; what helps: {'; '.join(ways)}"


def predict(
    config: Config,
    device: Device,
    world_size: int = 1,
    nodes: int = 1,
    link: Link | None = None,
    compiled: bool | None = None,
) -> Prediction:
    """A step of `config` on `world_size` processes, one a device, on `nodes` that `link` (8 x 400
    Gb/s) connects; `compiled` says whether chains of element-wise operators are one kernel, None:
    as engine.compile says. ConfigError where a micro-batch has no frames; ValueError where there
    are more processes than slots."""
    num_rounds = VirtualRanks(config.data.virtual_world_size).num_rounds(world_size)
    if compiled is None:
        compiled = bool(getattr(config.engine, "compile", False))
    work = work_of(config, gpu=device.is_gpu, compiled=compiled)
    stays = 1 - getattr(config.model, "layer_drop", 0.0)
    parts = _parts(work.kernels, device, num_rounds, stays)
    parts[OPTIMIZER] = _optimizer(config, work, device, num_rounds, world_size)
    compute = sum(part.seconds for part in parts.values())
    num_kernels = sum(part.kernels for part in parts.values())
    traffic = zero.exchange(config.engine, work.sizes, num_rounds)
    link = link or LINKS["8x400"]
    times = [c.seconds(device, link, world_size, nodes) for c in traffic]
    # The backward pass is two thirds of what a round computes
    backward = (compute - parts[OPTIMIZER].seconds) / num_rounds * 2 / 3
    exposed = sum(c.exposed(t, backward, num_rounds) for t, c in zip(times, traffic, strict=True))
    narrow = zero.is_narrow(config.engine)
    launches = num_kernels * device.launch_s
    return Prediction(
        device=device,
        world_size=world_size,
        num_rounds=num_rounds,
        num_parameters=sum(work.sizes),
        note=work.note,
        amount=work.amount,
        fused=compiled,
        step_seconds=max(compute, launches) + exposed,
        compute_seconds=compute,
        launch_seconds=launches,
        exchange_seconds=sum(times),
        exposed_seconds=exposed,
        sent_bytes=sum(c.sent_bytes(world_size) for c in traffic),
        memory=zero.memory(config.engine, work.sizes, work.graph, device, world_size),
        peak_flops=device.peak_flops if device.is_gpu or narrow else device.fp32_flops,
        flops=sum(part.flops for part in parts.values()),
        model_flops=num_rounds * _model_flops(work.kernels, stays),
        kernels=num_kernels,
        parts=parts,
    )


def kernel_seconds(op: Operator, device: Device) -> tuple[float, bool]:
    """How long a kernel runs, and whether the memory bounds it."""
    rate = device.matrix_flops if op.narrow else device.fp32_flops
    if op.kind == "attention":
        rate = device.attention_flops if op.narrow else min(rate, device.attention_flops)
    elif op.kind == "convolution of one channel":
        rate = device.fp32_flops
    rate *= SHARES[device.is_gpu].get(op.kind, 1.0)
    moving = op.bytes / device.bandwidth * (TURNED if op.kind == "copy" else 1.0)
    computing = op.flops / rate
    return max(moving, computing) + device.kernel_s, moving >= computing


def _parts(
    kernels: Sequence[Operator], device: Device, num_rounds: int, stays: float
) -> dict[str, Part]:
    """The parts of a step; layers are run with probability `stays`."""
    out = {}
    for name in PARTS:
        mine = [op for op in kernels if op.part == name]
        times = [kernel_seconds(op, device) for op in mine]
        seconds = sum(t for t, _ in times)
        weight = num_rounds * (stays if name in IN_LAYERS else 1.0)
        out[name] = Part(
            seconds=weight * seconds,
            flops=weight * sum(op.flops for op in mine),
            bytes=weight * sum(op.bytes for op in mine),
            kernels=weight * len(mine),
            memory_share=sum(t for t, by_memory in times if by_memory) / max(seconds, 1e-12),
        )
    return out


def _optimizer(
    config: Config, work: Work, device: Device, num_rounds: int, world_size: int
) -> Part:
    moved, kernels = zero.update(config.engine, work.sizes, num_rounds, world_size)
    return Part(
        seconds=moved / device.bandwidth + kernels * device.kernel_s,
        flops=0.0,
        bytes=moved,
        kernels=kernels,
        memory_share=1.0,
    )


def _model_flops(kernels: Sequence[Operator], stays: float) -> float:
    """Of a micro-batch, without what is computed anew: recomputed layers, and of attention's five
    products backward the first."""
    total = 0.0
    for op in kernels:
        if not op.recomputed:
            share = 0.8 if op.kind == "attention" and op.backward else 1.0
            total += op.flops * share * (stays if op.part in IN_LAYERS else 1.0)
    return total

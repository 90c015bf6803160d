"""What DeepSpeed 0.19.8 holds, exchanges and updates at each ZeRO stage, as training/engine.py sets
it up. Read from its sources, and held to counted collectives by tests/distributed/test_traffic.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from w2v2dist.jobs.devices import Device, Link
from w2v2dist.jobs.graph import Graph
from w2v2dist.training.engine import EngineConfig

PERSISTENT = 100_000  # elements: smaller parameters stay whole on every process at stage 3
BUCKET = 50_000_000  # elements: DeepSpeed exchanges gradients in pieces (reduce_bucket_size)
PIECE = 20_000_000  # elements: what ZeRO 1 in bf16 exchanges together, the last piece unhidden
SUM_BYTES = 4  # gradients are summed over processes in fp32, whatever the model's precision


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of exchange of a step: bytes of the whole tensor, and how often."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter"]
    what: str
    num_bytes: float
    times: int
    # Behind which backward passes: of no round, of a step's last, of each
    behind: Literal["none", "last", "each"] = "none"
    tail: float = 0.0  # share of it that the end of the backward pass starts, and nothing hides

    def sent_bytes(self, world_size: int) -> float:
        """What a process sends in a step: in a ring, or as any scheme must on average."""
        share = (world_size - 1) / world_size * (2 if self.kind == "all_reduce" else 1)
        return self.num_bytes * self.times * share

    def seconds(self, device: Device, link: Link, world_size: int, num_nodes: int) -> float:
        """As NCCL does it: rings through all GPUs and all of a node's adapters at once, as fast as
        the slower of the node's inside and the link; and a message for each level of a tree."""
        if world_size == 1:
            return 0.0
        rate, latency = device.node_bandwidth, device.kernel_s * math.log2(world_size)
        if num_nodes > 1:
            rate = min(rate, link.bandwidth)
            latency += 2 * link.latency_s * math.log2(num_nodes)
        pieces = max(1, math.ceil(self.num_bytes / (4 * BUCKET)))
        return self.sent_bytes(world_size) / rate + self.times * pieces * latency

    def exposed(self, seconds: float, backward: float, num_rounds: int) -> float:
        """What is left of its `seconds` where a round's backward pass takes `backward`."""
        passes = {"none": 0, "last": 1, "each": num_rounds}[self.behind]
        return seconds - min(seconds * (1 - self.tail), passes * backward)


def is_narrow(engine: EngineConfig) -> bool:
    """Whether the model has 16 bits."""
    return engine.precision != "fp32"


def stage_of(engine: EngineConfig) -> int:
    """The stage that runs: 16 bits at stage 0 run as stage 1."""
    return max(engine.zero_stage, int(is_narrow(engine)))


def exchange(
    engine: EngineConfig, sizes: Sequence[int], num_rounds: int, sum_bytes: int = SUM_BYTES
) -> list[Collective]:
    """The collectives of a step, of parameters of these sizes."""
    stage, width, total = stage_of(engine), 2 if is_narrow(engine) else 4, float(sum(sizes))
    if stage == 3:
        split = float(sum(n for n in sizes if n > PERSISTENT))
        small, summed = total - split, sum_bytes * total
        found = [
            Collective("reduce_scatter", "gradients", summed, num_rounds, "each"),
            # Once for forward and backward: a model below 1e9 parameters is not given back between
            Collective("all_gather", "weights", width * split, num_rounds, "each"),
            Collective("all_gather", "small weights", width * small, 1),
        ]
    elif engine.precision == "bf16" and stage == 1:  # training/exchange.py
        tail = min(1.0, PIECE / total)
        found = [Collective("all_reduce", "gradients", sum_bytes * total, 1, "last", tail)]
    else:
        times = num_rounds if stage == 2 else 1
        found = [Collective("all_reduce", "gradients", sum_bytes * total, times)]
    if stage in (1, 2):
        found.append(Collective("all_gather", "weights", width * total, 1))
    return [collective for collective in found if collective.num_bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Of one process at its fullest, bytes."""

    weights: float
    gradients: float
    optimizer: float
    kept: float  # for the backward pass
    transient: float  # what lives beside it for a moment
    buckets: float  # of gradients under way
    context: float  # CUDA, NCCL, libraries

    @property
    def state(self) -> float:
        """What stays from step to step."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.kept + self.transient + self.buckets + self.context


def memory(
    engine: EngineConfig, sizes: Sequence[int], graph: Graph, device: Device, world_size: int
) -> Memory:
    """What a process holds. Masters and moments are fp32 and split from stage 1 on, the sum of
    gradients from 2, the weights from 3 (while they are used they are whole too). bf16 at stage 1
    keeps the model's own gradients beside their sum."""
    stage, total, width = stage_of(engine), float(sum(sizes)), 2 if is_narrow(engine) else 4
    share = total / world_size
    gradients = SUM_BYTES * (share if stage >= 2 else total)
    if engine.precision == "bf16" and stage == 1:
        gradients += width * total
    in_buckets = stage >= 1 and not (engine.precision == "bf16" and stage == 1)
    return Memory(
        weights=width * (total + (share if stage == 3 else 0.0)),
        gradients=gradients,
        optimizer=12 * share if stage else 8 * total,
        kept=graph.kept_bytes,
        transient=max(0.0, graph.peak_bytes - graph.kept_bytes),
        buckets=SUM_BYTES * min(float(BUCKET), total) if in_buckets else 0.0,
        context=device.context_bytes,
    )


def update(
    engine: EngineConfig, sizes: Sequence[int], num_rounds: int, world_size: int
) -> tuple[float, float]:
    """Bytes that gradients and Adam move in a step beside the backward pass, and kernels. Adam
    reads weight, gradient and two moments and writes three of them, 28 bytes a parameter; a
    micro-batch's gradient is widened (6), added to the sum (12) and cleared (2); the sum is read
    for its norm and cleared (8); 16-bit weights are written anew (6)."""
    stage, total, tensors = stage_of(engine), float(sum(sizes)), len(sizes)
    share = total / world_size if stage else total
    if is_narrow(engine):
        moved, kernels = num_rounds * 20 * total, num_rounds * 2 * tensors
        moved += 6 * share
    else:
        moved, kernels = 12 * (num_rounds - 1) * total, (num_rounds - 1) * tensors
    if stage >= 2 or (stage and engine.precision != "bf16"):  # through buckets
        moved += 8 * total * (num_rounds if stage >= 2 else 1)
        kernels += tensors * (num_rounds if stage >= 2 else 1)
    held = share if stage >= 2 else total
    return moved + 8 * held + 28 * share, float(kernels + tensors + 10)

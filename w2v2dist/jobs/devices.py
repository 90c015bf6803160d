"""What a training can run on: rates, bandwidth, memory and links of GPUs, and of the CPU here.

Peaks are the vendor's; what is achieved of them is taken from published measurements of large
matrix products, copies and collectives, and from none of ours: no GPU has run this code yet.
"""

import difflib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# torch is imported late: a rank's job reads its cluster's settings before it can be interrupted

GIB = 2**30
GB = 1e9
RATES = ("peak", "matrix", "attention", "fp32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One GPU, or the CPU of a process. FLOP/s, bytes/s, bytes and seconds."""

    name: str
    peak_flops: float  # of 16-bit dense matrix products, as sold: what MFU is a share of
    matrix_flops: float  # of them as achieved by products of some thousand rows
    attention_flops: float  # of fused attention, heads of 64 channels
    fp32_flops: float  # of matrix products without TF32, as achieved
    bandwidth: float  # of memory, as achieved by a copy
    memory_bytes: float
    node_bandwidth: float  # of collectives inside a node, a direction (NCCL's bus bandwidth)
    kernel_s: float  # what a kernel takes beside its work: its start and its tail
    launch_s: float  # what the host takes to launch one, PyTorch without graphs
    context_bytes: float  # of a process beside its tensors: CUDA, NCCL, libraries' workspaces
    is_gpu: bool = True

    def like(self, peak_tflops: float | None, memory_gib: float | None) -> "Device":
        """One of this kind with another peak, its rates in proportion, and another memory; its
        name says so of the peak."""
        faster = 1.0 if peak_tflops is None else peak_tflops * 1e12 / self.peak_flops
        rates = {f"{name}_flops": faster * getattr(self, f"{name}_flops") for name in RATES}
        memory = self.memory_bytes if memory_gib is None else memory_gib * GIB
        other = "" if peak_tflops is None else f" with {peak_tflops:g} TFLOP/s"
        return replace(self, **rates, name=self.name + other, memory_bytes=memory)


# A100: NVIDIA's data sheet (SXM, 80 GB): 312 TFLOP/s, 2,039 GB/s; cuBLAS reaches 250-270 (MLPerf,
# FlashAttention-2's paper for attention: 190-220 at heads of 64 and 128), a copy 85-90 %,
# nccl-tests all-reduce 230 GB/s on NVSwitch.
A100 = Device(
    name="a100",
    peak_flops=312e12,
    matrix_flops=250e12,
    attention_flops=150e12,
    fp32_flops=17e12,
    bandwidth=1.75e12,
    memory_bytes=80 * GIB,
    node_bandwidth=230 * GB,
    kernel_s=3e-6,
    launch_s=6e-6,
    context_bytes=1.5 * GIB,
)
# H100: data sheet (SXM, 80 GB): 989 TFLOP/s without sparsity, 3,350 GB/s; cuBLAS reaches 600-700 on
# large squares, FlashAttention-2 (torch's) 300-350 at heads of 64 (FlashAttention-3's paper), a
# copy 80-85 %, nccl-tests all-reduce 360 GB/s (480 with NVLink SHARP).
H100 = replace(
    A100,
    name="h100",
    peak_flops=989e12,
    matrix_flops=600e12,
    attention_flops=280e12,
    fp32_flops=50e12,
    bandwidth=2.7e12,
    node_bandwidth=360 * GB,
)
# H200: an H100 with 141 GB of HBM3e at 4,800 GB/s (data sheet)
H200 = replace(H100, name="h200", bandwidth=3.9e12, memory_bytes=141e9)
# The first A100: 1,555 GB/s
A100_40GB = replace(A100, name="a100-40gb", bandwidth=1.35e12, memory_bytes=40 * GIB)
DEVICES: dict[str, Device] = {d.name: d for d in (A100, A100_40GB, H100, H200)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What connects nodes: bytes/s of one node in one direction, seconds of a message."""

    name: str
    bandwidth: float
    latency_s: float


# 90 % of the wire: nccl-tests on DGX H100 pods (8 x 400 Gb/s: 340-370 GB/s), TCP on one 100 Gb/s
LINKS = {
    "8x400": Link(name="8 x 400 Gb/s", bandwidth=0.9 * 8 * 50 * GB, latency_s=10e-6),
    "1x100": Link(name="1 x 100 Gb/s Ethernet", bandwidth=0.9 * 12.5 * GB, latency_s=50e-6),
}


def check_name(name: str) -> None:
    """Raise ValueError for a device that is not known."""
    if name not in DEVICES and name != "cpu":
        near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"gpu is {name!r} but must be one of {', '.join(DEVICES)}, or cpu: {hint}name the one "
            "most like yours, or add its rates to DEVICES in w2v2dist/jobs/devices.py"
        )


def named(name: str) -> Device:
    """The device of a name ("h100"), or "cpu" for this machine's. Raises ValueError."""
    check_name(name)
    return this_cpu() if name == "cpu" else DEVICES[name]


def this_device() -> Device:
    """The GPU here by its name, or the CPU as measured. ValueError for a GPU that is not known."""
    import torch

    if not torch.cuda.is_available():
        return this_cpu()
    found = torch.cuda.get_device_properties(0)
    return of_gpu(found.name, float(found.total_memory))


def of_gpu(name: str, memory_bytes: float) -> Device:
    """The device that a GPU calls itself ("NVIDIA H100 80GB HBM3"). Raises ValueError."""
    for device in (H200, H100, A100):
        if device.name in name.lower():
            small = device is A100 and memory_bytes < 50e9
            return replace(A100_40GB if small else device, memory_bytes=memory_bytes)
    raise ValueError(
        f"the GPU here is {name!r}, and rates are known of {', '.join(DEVICES)} alone: name the "
        "one most like it, or add its rates to DEVICES in w2v2dist/jobs/devices.py"
    )


@functools.cache
def this_cpu() -> Device:
    """This machine's CPU with torch's present number of threads, measured in a second."""
    fp32, narrow = _matrix_rate("float32"), _matrix_rate("bfloat16")
    # The fused kernel of CPUs reaches 67 of 90 GFLOP/s a core, and knows fp32 only
    return Device(
        name="cpu",
        peak_flops=narrow,
        matrix_flops=narrow,
        attention_flops=0.75 * fp32,
        fp32_flops=fp32,
        bandwidth=_copy_rate(),
        memory_bytes=_memory_bytes(),
        node_bandwidth=2 * GB,  # gloo over the loopback, a core's memory copies
        kernel_s=5e-6,
        launch_s=5e-6,
        context_bytes=0.6 * GIB,  # Python, torch and DeepSpeed
        is_gpu=False,
    )


def _matrix_rate(dtype: str, size: int = 1024) -> float:
    """FLOP/s of a square product, the best of several within a quarter of a second."""
    import torch

    a, b = torch.randn(2, size, size).to(getattr(torch, dtype)).unbind()
    return 2 * size**3 / _best_seconds(lambda: a @ b)


def _copy_rate(num_bytes: int = 64 * 2**20) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    import torch

    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return 2 * num_bytes / _best_seconds(lambda: target.copy_(source))


def _best_seconds(call: Callable[[], Any], limit_s: float = 0.25) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + limit_s
    while (start := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _memory_bytes() -> float:
    """Of this machine, as Linux says; 0 where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    total = next((line for line in lines if line.startswith("MemTotal")), "MemTotal: 0 kB")
    return float(total.split()[1]) * 1024

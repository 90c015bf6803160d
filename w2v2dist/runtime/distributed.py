"""World (rank, size, reduce) over gloo on CPU or NCCL on GPU, and VirtualRanks (fixed slots)."""

import datetime
import fcntl
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the processes of the job."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @classmethod
    def from_environment(cls, timeout_s: int = 1800) -> "World":
        """Join the group of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, of a Slurm step on one
        node without them, alone outside of one. Raises ValueError where GPUs were given to the job
        and cannot be used as they are, or the processes are not alike."""
        _step_of_slurm()
        size = int(os.environ.get("WORLD_SIZE", "1"))
        rank, local_rank = (int(os.environ.get(k, "0")) for k in ("RANK", "LOCAL_RANK"))
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            if size > 1:
                raise RuntimeError(
                    f"WORLD_SIZE is {size} but MASTER_ADDR or MASTER_PORT is not set: start the "
                    "processes with torchrun, launch/submit.py or launch/train.sbatch"
                )
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        device = prepared(own_device(local_rank))
        if cuda := device.type == "cuda":
            local_rank = device.index  # DeepSpeed reads LOCAL_RANK
            torch.cuda.set_device(device)
        else:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
        if not dist.is_initialized():
            # Else gloo takes the interface that this host's own name stands for
            if name := interface_to(os.environ["MASTER_ADDR"]):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
        world = cls(rank=rank, size=size, local_rank=local_rank, device=device)
        try:
            check_alike(world.gather((socket.gethostname(), device.type, _uuid(device))))
        except ValueError:
            world.close()
            raise
        return world

    @classmethod
    def of_command(cls, timeout_s: int = 1800) -> "World":
        """The same for a command that also runs without a launcher: alone, it needs no group."""
        _step_of_slurm()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return cls.from_environment(timeout_s)
        return cls(rank=0, size=1, local_rank=0, device=prepared(own_device(0)))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes (float64, on the CPU)."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        """Element-wise maximum over all processes (float64, on the CPU)."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: list[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return [*map(float, values)]
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=op)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable value, in the order of ranks."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def barrier(self) -> None:
        """Wait for every process."""
        self.sum([0.0])

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def limit_groups() -> None:
    """Give every group of processes the time-out of the first: torch gives each that is made later
    10 or 30 minutes."""
    if dist.is_initialized():
        world = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        for group in distributed_c10d._world.pg_map:
            distributed_c10d._set_pg_timeout(world.options._timeout, group)


NO_GPUS = ("", "-1", "NoDevFiles", "none", "void")  # values that grant nothing
GRANTS = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")


def own_device(local_rank: int) -> torch.device:
    """The GPU of a process of this node, or the CPU where the job has none or W2V2DIST_CPU is 1.
    Raises ValueError where GPUs were given to the job and torch cannot use them, or too few."""
    if os.environ.get("W2V2DIST_CPU") == "1":
        return torch.device("cpu")
    host = socket.gethostname()
    if not torch.cuda.is_available():
        given = [f"{n}={v}" for n in GRANTS if (v := os.environ.get(n, "")) not in NO_GPUS]
        given = [text for text in given if text != "SLURM_GPUS_ON_NODE=0"]
        if not given and not Path("/dev/nvidia0").exists():
            return torch.device("cpu")
        raise ValueError(
            f"{host} has GPUs ({', '.join(given) or '/dev/nvidia0'}), but torch "
            f"{torch.__version__} cannot use them; driver: {_driver()}. Its CUDA "
            f"{torch.version.cuda} needs a driver that knows it (13: 580 or newer): update the "
            "driver, install a torch for an older CUDA, or leave the node out (sbatch --exclude); "
            "to train on the CPU, set W2V2DIST_CPU=1"
        )
    count = torch.cuda.device_count()
    if count > 1 and local_rank >= count:
        raise ValueError(
            f"process {local_rank} of {host} has no GPU: {count} can be seen, counted from 0. "
            "One may have failed (nvidia-smi -L): leave the node out (sbatch --exclude), or start "
            f"{count} processes a node (gpus_per_node)"
        )
    return torch.device("cuda", 0 if count == 1 else local_rank)  # a task may see its own alone


def prepared(device: torch.device) -> torch.device:
    """The device itself, torch being told how to compute on it."""
    if device.type == "cuda":
        # It makes a plan for every new shape (25 to 400 ms), and micro-batches have many; flash
        # and memory-efficient attention need none
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32: 16 bits are there for speed
        # Gradients of convolutions are products that add up 100,000 frames: partial sums in fp32
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def interface_to(host: str) -> str | None:
    """The network interface of this machine that reaches `host` over IPv4; None for itself by a
    loopback address, or where it cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect((host, 9))  # sends nothing
        except OSError:
            return None
        own = s.getsockname()[0]
        if own.startswith("127."):
            return None
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(s.fileno(), 0x8915, request)  # SIOCGIFADDR
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == own:
                return name
    return None


def _driver() -> str:
    """The NVIDIA driver's version, as far as this host says."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "none is loaded"
    found = re.search(r"\b(\d{3}\.[\d.]+)", text)
    return found[1] if found else text.splitlines()[0]


def _uuid(device: torch.device) -> str:
    """What tells a GPU from others; "" of a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def check_alike(processes: list[tuple[str, str, str]]) -> None:
    """Raise ValueError where of the processes (host, type of device, its uuid) some have a GPU and
    some none, or two have the same."""
    on_cpu = sorted({host for host, kind, _ in processes if kind == "cpu"})
    if on_cpu and any(kind == "cuda" for _, kind, _ in processes):
        raise ValueError(
            f"processes on {', '.join(on_cpu[:5])} have no GPU but others have: leave these nodes "
            "out (sbatch --exclude), or train on CPUs alone with W2V2DIST_CPU=1"
        )
    seen: set[tuple[str, str]] = set()
    for host, kind, uuid in processes:
        if kind == "cuda" and (host, uuid) in seen:
            raise ValueError(
                f"two processes of {host} have the same GPU ({uuid}): start one for each GPU "
                "(gpus_per_node, --nproc-per-node), and let each see all or its own"
            )
        seen.add((host, uuid))


def _step_of_slurm() -> None:
    """RANK and the others of `srun w2v2dist train`, on one node. Raises ValueError on several."""
    env = os.environ
    size = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in env or "WORLD_SIZE" in env or size == 1 or "SLURM_PROCID" not in env:
        return
    if int(env.get("SLURM_STEP_NUM_NODES", "1")) > 1 and "MASTER_ADDR" not in env:
        raise ValueError(
            f"srun started {size} tasks but RANK, WORLD_SIZE and MASTER_ADDR are not set, and each "
            "would train alone: use launch/submit.py or launch/train.sbatch, or torchrun"
        )
    port = 20_000 + int(env.get("SLURM_JOB_ID", "0")) % 10_000
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", str(port))
    env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=str(size))
    env.update(LOCAL_RANK=env.get("SLURM_LOCALID", "0"))


def free_port() -> int:
    """A TCP port that is free now on this host."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True, slots=True)
class VirtualRanks:
    """The slots 0 … num_slots−1 of a step, spread over W processes: rank r has r, r + W, …"""

    num_slots: int

    def check(self, world_size: int) -> None:
        """Raise ValueError where there are more processes than slots."""
        if world_size > self.num_slots:
            raise ValueError(
                f"data.virtual_world_size is {self.num_slots} but the job has {world_size} "
                f"processes, and a process needs at least one slot: use at most {self.num_slots} "
                f"processes, or set data.virtual_world_size={world_size} (a new run: it changes "
                "the batch)"
            )

    def num_rounds(self, world_size: int) -> int:
        """Micro-batches that every process runs per step, empty ones included."""
        self.check(world_size)
        return -(-self.num_slots // world_size)

    def slots(self, rank: int, world_size: int) -> list[int | None]:
        """The slots of `rank`, one per round; None is an empty slot: collectives stay aligned."""
        rounds = range(self.num_rounds(world_size))
        return [s if (s := r * world_size + rank) < self.num_slots else None for r in rounds]

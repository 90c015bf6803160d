"""World (rank, size, reduce) over gloo on CPU or NCCL on GPU, and VirtualRanks (fixed slots)."""

import datetime
import os
import socket
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the processes of the job."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @classmethod
    def from_environment(cls, timeout_s: int = 1800) -> "World":
        """Join the group of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; alone without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        rank, local_rank = (int(os.environ.get(k, "0")) for k in ("RANK", "LOCAL_RANK"))
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            if size > 1:
                raise RuntimeError(
                    f"WORLD_SIZE is {size} but MASTER_ADDR or MASTER_PORT is not set: start the "
                    "processes with torchrun, launch/submit.py or launch/train.sbatch"
                )
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        device = torch.device("cpu")
        if cuda := torch.cuda.is_available():
            # A task may see only its own GPU; DeepSpeed reads LOCAL_RANK
            local_rank %= torch.cuda.device_count()
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        else:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
        return cls(rank=rank, size=size, local_rank=local_rank, device=device)

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
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=op)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable value, in the order of ranks."""
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

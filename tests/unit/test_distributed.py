"""A process's place in its job: GPUs that were given and cannot be used, and Slurm's variables."""

from __future__ import annotations

import socket
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from w2v2dist.runtime import distributed
from w2v2dist.runtime.distributed import World, check_alike, own_device

VARIABLES = (
    *distributed.GRANTS, "W2V2DIST_CPU", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR",
    "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES",
    "SLURM_JOB_ID",
)  # fmt: skip


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of a job is set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_gpus_that_were_given_and_cannot_be_used(env: pytest.MonkeyPatch) -> None:
    env.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device(0).type == "cpu" or Path("/dev/nvidia0").exists()
    for name, value in (
        ("SLURM_GPUS_ON_NODE", "8"), ("CUDA_VISIBLE_DEVICES", "0,1"), ("SLURM_JOB_GPUS", "0-7"),
        ("CUDA_VISIBLE_DEVICES", "0"),
    ):  # fmt: skip
        with env.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(
                ValueError, match=rf"has GPUs \({name}={value}\), but torch.*driver: "
            ):
                own_device(0)
            patch.setenv("W2V2DIST_CPU", "1")
            assert own_device(0).type == "cpu"
    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("SLURM_GPUS_ON_NODE", "0")):
        env.setenv(name, value)
        assert own_device(0).type == "cpu" or Path("/dev/nvidia0").exists()


def test_fewer_gpus_than_processes(env: pytest.MonkeyPatch) -> None:
    env.setattr(torch.cuda, "is_available", lambda: True)
    env.setattr(torch.cuda, "device_count", lambda: 7)
    assert own_device(6) == torch.device("cuda", 6)
    with pytest.raises(ValueError, match=r"process 7 of .* has no GPU: 7 can be seen"):
        own_device(7)
    env.setattr(torch.cuda, "device_count", lambda: 1)  # each task sees its own
    assert own_device(5) == torch.device("cuda", 0)


def test_how_a_gpu_is_to_compute(env: pytest.MonkeyPatch) -> None:
    """No plans of cuDNN's attention for every new shape, and fp32 is fp32."""
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.allow_tf32
    matmul: Any = torch.backends.cuda.matmul
    names = [f"allow_{kind}_reduced_precision_reduction" for kind in ("bf16", "fp16")]
    sums = [getattr(matmul, name) for name in names]
    distributed.prepared(torch.device("cpu"))
    assert (torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.allow_tf32) == before
    env.setattr(torch.cuda, "is_available", lambda: True)
    env.setattr(torch.cuda, "device_count", lambda: 1)
    try:
        assert World.of_command().device.type == "cuda"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert [getattr(matmul, name) for name in names] == [False, False]
    finally:
        for name, value in zip(names, sums, strict=True):
            setattr(matmul, name, value)
        torch.backends.cuda.enable_cudnn_sdp(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_the_interface_that_leads_to_the_master(env: pytest.MonkeyPatch) -> None:
    assert distributed.interface_to("127.0.0.1") is None
    assert distributed.interface_to("no.such.host.invalid") is None
    own = {"eth0": "10.1.2.3", "ib0": "10.9.2.3"}

    class Socket:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Socket:
            return self

        def __exit__(self, *_: object) -> None: ...
        def connect(self, address: tuple[str, int]) -> None:
            self.to = address[0]

        def getsockname(self) -> tuple[str, int]:
            return own["ib0"] if self.to.startswith("10.9.") else own["eth0"], 4

        def fileno(self) -> int:
            return 3

    def ioctl(_file: int, _request: int, name: bytes) -> bytes:
        found = own.get(name.rstrip(b"\0").decode())
        if found is None:
            raise OSError
        return bytes(20) + socket.inet_aton(found) + bytes(232)

    env.setattr(distributed.socket, "socket", Socket)
    env.setattr(distributed.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "ib0")])
    env.setattr(distributed.fcntl, "ioctl", ioctl)
    assert distributed.interface_to("10.9.7.7") == "ib0"
    assert distributed.interface_to("10.1.7.7") == "eth0"


def test_processes_must_be_alike() -> None:
    check_alike([("a", "cpu", ""), ("a", "cpu", ""), ("b", "cpu", "")])
    check_alike([("a", "cuda", "1"), ("a", "cuda", "2"), ("b", "cuda", "1")])
    with pytest.raises(ValueError, match="processes on b have no GPU but others have"):
        check_alike([("a", "cuda", "1"), ("b", "cpu", ""), ("b", "cpu", "")])
    with pytest.raises(ValueError, match=r"two processes of a have the same GPU \(1\)"):
        check_alike([("a", "cuda", "1"), ("a", "cuda", "1")])


def test_srun_without_ranks(env: pytest.MonkeyPatch) -> None:
    env.setattr(distributed, "os", types.SimpleNamespace(environ={}))
    values = distributed.os.environ
    distributed._step_of_slurm()
    assert values == {}
    values |= {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_STEP_NUM_TASKS": "4"}
    values |= {"SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_NODES": "1"}
    distributed._step_of_slurm()
    assert {k: values[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")} == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_PORT": "23456"
    }  # fmt: skip
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        del values[name]
    values["SLURM_STEP_NUM_NODES"] = "2"
    with pytest.raises(ValueError, match="srun started 4 tasks but RANK, WORLD_SIZE and MASTER"):
        distributed._step_of_slurm()
    values["SLURM_STEP_NUM_TASKS"] = "1"  # a batch script's own process
    distributed._step_of_slurm()

"""Nothing between the forward pass and the optimizer waits for the GPU: seen without one, on
tensors of "cuda" that have no numbers (FakeTensorMode)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distributed.processes import MODEL
from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.batch import Rows
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.config import DataConfig
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.tasks.finetune import FinetuneCollate, FinetuneConfig, FinetuneTask
from w2v2dist.tasks.pretrain import PretrainCollate, PretrainConfig, PretrainTask

SIZES = {"conv_channels": 16, "embed_dim": 32, "ffn_dim": 64, "final_dim": 16}
VALUES = {**MODEL, **SIZES, "channel_mask_prob": 0.2, "channel_mask_length": 8}


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device of type `kind`: a number that is read, a size
    that is only known there, a copy that blocks."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.found = kind, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = [a.device.type for a in args if isinstance(a, Tensor)]
        if self.kind in there and func.overloadpacket in (
            torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal,
            torch.ops.aten.masked_select, torch.ops.aten._unique2,
        ):  # fmt: skip
            self.found[str(func)] += 1
        out = func(*args, **kwargs)
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        ends = {*there, out.device.type} if copies else set[str]()
        asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
        if len(ends) > 1 and not asynchronous:
            self.found[f"{func} {sorted(ends)}"] += 1
        return out


def rows(num_samples: list[int]) -> Rows:
    """Utterances of a micro-batch."""
    lengths, count = np.array(num_samples), len(num_samples)
    ids = np.arange(count)
    micro = MicroBatch(3, 1, 0, ids, ids * 0, lengths, ids * 0 + 100)
    sounds = [np.zeros(n, np.float32) for n in num_samples]
    labels = [{"text": "ONE TWO"} for _ in num_samples]
    return Rows(micro, sounds, labels, [f"u{i}" for i in range(count)], [*range(count)])


def pretraining() -> tuple[Any, Any]:
    config = PretrainConfig(
        run_dir="unused", model=Wav2Vec2Config(**MODEL | SIZES), data=DataConfig(min_samples=8_000)
    )
    batch = PretrainCollate(config.model, 0, 8_000, train=True)(rows([12_000, 12_000]))
    return PretrainTask(config), batch


def finetuning(lengths: list[int]) -> tuple[Any, Any]:
    config = FinetuneConfig(run_dir="unused", model=Wav2Vec2Config(**VALUES), freeze_steps=2)
    letters = alphabet("letters")
    batch = FinetuneCollate(config.model, letters, 0, train=True)(rows(lengths))
    return FinetuneTask(config, letters), batch


TASKS = {
    "pretraining": pretraining,
    "finetuning": lambda: finetuning([12_000, 12_000]),
    "finetuning, padded": lambda: finetuning([14_000, 12_000]),
}


@pytest.mark.parametrize("name", TASKS)
def test_forward_and_losses_wait_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(log_probs: Tensor, targets: Tensor, *lengths: Any, **_: Any) -> Tensor:
        assert log_probs.is_cuda
        assert targets.is_cuda
        assert all(of.device.type == "cpu" for of in lengths[:2])  # else it fetches them
        return log_probs.sum()

    # What fake tensors have no model of: both need a driver
    monkeypatch.setattr(F, "ctc_loss", loss)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    task, batch = TASKS[name]()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Waits("cuda") as waits:
        model = task.model.to_empty(device="cuda").train()
        batch = batch.map(lambda t: mode.from_tensor(t).to("cuda", non_blocking=True))
        assert batch.waveforms.is_cuda
        waits.found.clear()
        sums = task.losses(model, batch, 3, 0)
        assert {value.device.type for value in sums.values()} == {"cuda"}
    assert not waits.found


@pytest.mark.parametrize("name", TASKS)
def test_the_backward_pass_reads_no_number(name: str) -> None:
    """Fake tensors have none: on the CPU, whose operators are the same."""
    task, batch = TASKS[name]()
    loss = task.losses(task.model.train(), batch, 3, 0)["loss"]
    with Waits("cpu") as waits:
        loss.backward()
    assert not waits.found


def test_what_waits_is_counted() -> None:
    with FakeTensorMode(), Waits("cuda") as waits:
        x = torch.ones(3, device="cuda")
        torch.tensor(2.0).to("cuda", non_blocking=True)
        assert not waits.found
        torch.tensor(2.0).to("cuda")
        x.cpu()
        for wait in (x[0].item, x.nonzero):
            with pytest.raises(Exception, match="aten"):
                wait()
    assert sum(waits.found.values()) == 4

"""Gradients are added up in fp32, over slots and over processes: a step under bf16 and fp16 is the
same on any number of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing import start_processes

from tests.distributed.processes import MODEL, fork_server, fp16_on_cpu
from w2v2dist.model import (
    Wav2Vec2Config,
    Wav2Vec2ForPretraining,
    distractor_positions,
    span_mask,
)
from w2v2dist.runtime.distributed import VirtualRanks, World, free_port
from w2v2dist.training import engine_state, exchange
from w2v2dist.training.engine import Engine, EngineConfig, OptimizerConfig

pytestmark = pytest.mark.timeout(400)

SMALL = {"num_layers": 2, "conv_channels": 16, "embed_dim": 32, "ffn_dim": 64, "final_dim": 16}
CONFIG = Wav2Vec2Config(**{**MODEL, **SMALL}, extractor_norm="layer")
NUM_SAMPLES, NUM_SLOTS, BETA = 5_000, 8, 0.9
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# ZeRO 3 last: it leaves a linear layer of its own behind in the process
OFTEN: list[tuple[Any, int]] = [("bf16", 1), ("bf16", 2), ("fp16", 1), ("bf16", 3)]
OTHERS: list[tuple[Any, int]] = [("bf16", 0), ("fp16", 0), ("fp16", 2), ("fp16", 3)]


def make_model() -> Wav2Vec2ForPretraining:
    torch.manual_seed(0)
    return Wav2Vec2ForPretraining(CONFIG)


def slot_loss(model: Any, slot: int) -> Tensor:
    """A slot's share of the step's loss, with dropout; the second layer is dropped."""
    rng = np.random.default_rng(slot)
    mask = span_mask(rng, CONFIG.num_frames(NUM_SAMPLES), 1, CONFIG)
    distractors = distractor_positions(rng, int(mask.sum()), 1, CONFIG.num_distractors)
    waveforms = rng.standard_normal((1, NUM_SAMPLES), np.float32)
    torch.manual_seed(slot)
    out = model(
        *(torch.from_numpy(a) for a in (waveforms, mask, distractors)), drop_layers=[False, True]
    )
    return out.loss / (NUM_SLOTS * int(mask.sum()))  # type: ignore[no-any-return]


def one_step(engine: Engine) -> dict[str, Tensor]:
    """Adam's first moments after a step, whole tensors from all processes."""
    world = engine.world
    slots = VirtualRanks(NUM_SLOTS).slots(world.rank, world.size)
    engine.train()
    for slot in slots:
        assert slot is not None
        engine.backward(slot_loss(engine, slot))
        engine.step(1e-3 if slot == slots[-1] else None)
    moments: dict[str, Tensor] = {}
    parts = {
        name: (held.start, held.data_range.clone())
        for name, held in engine_state.ranges({"": engine}, for_save=False).items()
        if name.startswith("exp_avg/")
    }
    shapes = {name: p for name, p in make_model().named_parameters()}
    for part in world.gather(parts):
        for name, (start, values) in part.items():
            whole = moments.setdefault(name, torch.zeros(shapes[name[8:]].numel()))
            whole[start : start + len(values)] = values
    return moments


def sum_of_slots(precision: str) -> dict[str, Tensor]:
    """What Adam's first moments should be: every slot's gradients by themselves, added in fp32."""
    model = make_model().to(DTYPES[precision]).train()
    scale = 2.0**16 if precision == "fp16" else 1.0  # DeepSpeed's first
    total = {f"exp_avg/{n}": torch.zeros(p.numel()) for n, p in model.named_parameters()}
    for slot in range(NUM_SLOTS):
        model.zero_grad()
        (slot_loss(model, slot) * scale).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[f"exp_avg/{name}"] += (1 - BETA) / scale * p.grad.flatten().float()
    return total


def run(rank: int, port: int, size: int, cases: list[tuple[Any, int]], folder: Path) -> None:
    """Every precision and stage in turn; rank 0 writes the moments."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    fp16_on_cpu()
    exchange.PIECE = 5_000  # of 130,000: many, while the backward pass runs
    world = World.from_environment(120)
    found: dict[Any, dict[str, Tensor]] = {}
    if size == 1:
        found |= {precision: sum_of_slots(precision) for precision in DTYPES}
    for precision, stage in cases:
        config = EngineConfig(zero_stage=stage, precision=precision)
        engine = Engine(make_model(), config, OptimizerConfig(), NUM_SLOTS // size, world)
        found[precision, stage] = one_step(engine)
    if world.is_main:
        torch.save(found, folder / f"{size}.pt")
    world.close()


@pytest.fixture(scope="module", params=[OFTEN, pytest.param(OTHERS, marks=pytest.mark.slow)])
def moments(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[Any, dict[str, Tensor]]]:
    """Number of processes -> (precision, stage) -> name -> Adam's first moment after a step; of one
    process also precision -> what it should be."""
    folder = tmp_path_factory.mktemp("moments")
    fork_server()
    for size in (1, 2, 4):
        arguments = (free_port(), size, request.param, folder)
        start_processes(run, arguments, nprocs=size, start_method="forkserver")
    return {size: torch.load(folder / f"{size}.pt") for size in (1, 2, 4)}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any element, relative to the largest of its tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in expected.items()
    )


def test_a_step_does_not_depend_on_the_number_of_processes(moments: Any) -> None:
    one = {case: values for case, values in moments[1].items() if case not in DTYPES}
    for size in (2, 4):
        errors = {case: error(moments[size][case], values) for case, values in one.items()}
        assert max(errors.values()) < 1e-6, (size, errors)


def test_a_step_is_the_sum_of_its_slots_in_fp32(moments: Any) -> None:
    """ZeRO 3 has a linear layer of its own, which rounds a slot's gradients in another way (1 % of
    the whole gradient in bf16, less in fp16); how they are added up is the same."""
    for size in (1, 2, 4):
        cases = [case for case in moments[size] if case not in DTYPES]
        for precision, stage in cases:
            values, expected = moments[size][precision, stage], moments[1][precision]
            if stage < 3:
                assert error(values, expected) < 1e-6
            found, wanted = (torch.cat([m[n] for n in expected]) for m in (values, expected))
            assert torch.dist(found, wanted) < 0.03 * wanted.norm()

"""The linear probe, when it is due, and what it is owed after a signal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from w2v2dist.config import ConfigError
from w2v2dist.reporting.panels import panels_of
from w2v2dist.reporting.runs import read_run
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.linear_probe import LinearProbe
from w2v2dist.tasks.probe import ProbeConfig
from w2v2dist.training.probing import Probing
from w2v2dist.training.schedules import LoopConfig


def test_it_reads_letters_that_are_there_and_not_those_that_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(4, 6, generator=generator)  # of blank and three letters

    def utterance(clear: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(1, 4, (5,), generator=generator)
        frames = torch.stack([ids, ids, torch.zeros(5, dtype=torch.int64)], 1).flatten()
        noise = torch.randn(15, 6, generator=generator)
        return (codes[frames] + 0.1 * noise if clear else noise), ids

    def wrong(clear: bool) -> float:
        probe = LinearProbe([utterance(clear) for _ in range(40)], 4)
        assert probe.train(150, 0.05, 0, lambda: True)
        errors = 0
        for _ in range(20):
            features, ids = utterance(clear)
            path = torch.unique_consecutive(probe(features).argmax(-1))
            errors += path[path > 0].tolist() != ids.tolist()
        return errors / 20

    assert wrong(True) < 0.5 < wrong(False)  # equal neighbours are told apart by the blank


def test_it_draws_no_random_number_and_stops_when_told() -> None:
    training = [(torch.randn(9, 4), torch.tensor([1, 2])) for _ in range(3)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    probe = LinearProbe(training, 3)
    assert probe.train(60, 0.01, 0, lambda: True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not LinearProbe(training, 3).train(60, 0.01, 0, lambda: False)
    again = LinearProbe(training, 3)
    again.train(60, 0.01, 0, lambda: True)
    assert torch.equal(again.weight, probe.weight)


class Fake:
    """A probe that a signal interrupts or not."""

    every, notes = 10, ("a note",)

    def run(
        self, engine: Any, world: World, going_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        return {"probe/layer_01/cer": 0.5} if going_on() else None


def make(probe: Fake | None) -> tuple[Probing, list[dict[str, Any]], list[bool]]:
    records: list[dict[str, Any]] = []
    modes: list[bool] = []
    logger = SimpleNamespace(metrics=records.append, say=lambda text: None)
    run = SimpleNamespace(
        config=SimpleNamespace(loop=LoopConfig(max_steps=25)),
        world=World.of_command(),
        watchdog=SimpleNamespace(progress=lambda: None),
        logger=logger,
    )
    engine = SimpleNamespace(train=lambda mode=True: modes.append(mode))
    return Probing(run, {"": engine}, probe), records, modes  # type: ignore[arg-type, dict-item]


def test_due_owed_and_logged() -> None:
    probing, records, modes = make(Fake())
    assert [step for step in range(1, 26) if probing.due(step)] == [10, 20, 25]
    flag = PreemptionFlag()
    flag.signal_number = 15
    assert not probing.run(10, flag)
    assert (probing.state(), records, modes) == (10, [], [False, True])
    other, records, _ = make(Fake())
    other.restore(probing.state())
    assert other.run(10, PreemptionFlag())
    assert other.state() is None
    assert (records[0]["step"], records[0]["probe/layer_01/cer"]) == (10, 0.5)
    other.restore(7)  # probe.every was changed since
    assert other.due(7)


def test_without_a_probe_nothing_is_due() -> None:
    probing, _, _ = make(None)
    assert not any(probing.due(step) for step in range(1, 26))
    assert probing.notes == ()


@pytest.mark.parametrize(
    ("layers", "num_layers", "wanted"),
    [((), 12, [4, 8, 12]), ((), 1, [1]), ((12, 0, 12), 12, [0, 12]), ((), 24, [8, 16, 24])],
)
def test_layers(layers: Sequence[int], num_layers: int, wanted: list[int]) -> None:
    assert ProbeConfig(layers=tuple(layers)).of(num_layers) == wanted
    with pytest.raises(ConfigError, match=r"probe.layers has 13"):
        ProbeConfig(layers=(13,)).of(12)


def test_the_report_has_a_curve_for_each_layer(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: pretrain\nloop: {max_steps: 40}\n")
    (tmp_path / "events.jsonl").write_text('{"event": "start", "time": 1.0, "world_size": 1}\n')
    rows: list[dict[str, float]] = []
    for step in (10, 20):
        rows.append({"step": step, "loss": 2.0, "seconds": 1.0, "time": step})
        cer = {f"probe/layer_{layer:02d}/cer": 0.5 for layer in (2, 11)}
        rows.append({"step": step, **cer, "probe/seconds": 3.0, "time": step + 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(tmp_path)
    assert run is not None
    (panel,) = [panel for panel in panels_of([run]) if "probe" in panel.title]
    assert [*panel.curves.values()] == ["layer 02", "layer 11"]
    assert run.series("probe/layer_11/cer")[1].tolist() == [0.5, 0.5]

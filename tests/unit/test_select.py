"""`w2v2dist unsupervised select`: what is chosen of a sweep, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gan_data import write_gan_config, write_language
from tests.training_parts import world as world  # a fixture
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.train import read_config
from w2v2dist.tasks.unsupervised import UnsupervisedTask, unsupervised_source
from w2v2dist.training.loop import fit
from w2v2dist.unsupervised.select import disagreement, read_cells, verdict
from w2v2dist.unsupervised.selection import text_likeness

TEXT_NLL, SHUFFLED_NLL = 2.0, 4.0


def write_run(
    folder: Path,
    validations: dict[int, tuple[float | None, float, float, float]],
    *,
    saved: list[int] | None = None,
    max_steps: int = 300,
    task: str = "unsupervised",
    data: dict[str, Any] | None = None,
    likeness: float | None = None,
) -> None:
    """A run's logs and the names of its checkpoints: step -> score, NLL, phones in use, log
    probability."""
    folder.mkdir(parents=True)
    config = {"task": task, "loop": {"max_steps": max_steps}, "alarms": {"min_text_likeness": 0.5}}
    config["data"] = {
        "valid": "features/valid",
        "text": "phones",
        "batch_size": 160,
        **(data or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = []
    for step, (score, nll, usage, log_prob) in validations.items():
        lines.append({"step": step, "loss": 1.0})
        values = {"weighted_lm_ppl": score, "nll": nll, "phone_usage": usage, "log_prob": log_prob}
        known = text_likeness(nll, TEXT_NLL, SHUFFLED_NLL) if likeness is None else likeness
        values |= {"text_likeness": known} if known == known else {}  # as metrics leaves NaN out
        lines.append({"step": step, **{f"valid/{k}": v for k, v in values.items()}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    for step in validations if saved is None else saved:
        (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


def choose(sweep: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["unsupervised", "select", str(sweep), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_both_rules_over_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """a has the best score at step 200, whose checkpoint is gone; of what is left b is the best.
    The paper's anchor is a (NLL - ln U); b is within ln 1.2 of it and more likely as a whole."""
    write_run(
        tmp_path / "a",
        {100: (30.0, 2.7, 0.9, -950.0), 200: (15.0, 2.4, 0.9, -800.0), 300: (18.0, 2.6, 1.0, -900)},
        saved=[100, 300],
    )
    write_run(tmp_path / "b", {300: (17.0, 2.7, 1.0, -850.0)})
    write_run(tmp_path / "c", {300: (64.0, 4.0, 0.6, -1500.0)})
    write_run(tmp_path / "d", {100: (None, 9.0, 0.0, -10.0)})
    found = choose(tmp_path, capsys)
    assert found["chosen"] == {
        "score": str(tmp_path / "b/checkpoints/step_00000300"),
        "paper": str(tmp_path / "b/checkpoints/step_00000300"),
    }
    problems = {run["run"]: run["problem"] for run in found["runs"]}
    assert problems == {
        "a": "",
        "b": "",
        "c": "60% of the phones in use",
        "d": "nothing but silence",
    }
    assert found["num_converged"] == 2
    assert found["verdict"][0].startswith("1 of 4 runs are not finished")
    assert found["verdict"][1].startswith("2 of 4 runs look converged")
    # Nothing can be read with checkpoints that are no more than names
    assert found["verdict"][2].startswith("UNSURE")
    assert not found["converged"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((20.0, 2.1, 0.7, -900.0), "70% of the phones in use"),
        ((20.0, 3.1, 1.0, -900.0), "like text by 45%, under 50%"),
        ((20.0, 5.0, 1.0, -900.0), "like text by 0%, under 50%"),
        ((20.0, 2.9, 0.8, -900.0), ""),
        # A score alone says nothing: it depends on how predictable a language's phones are
        ((200.0, 1.9, 0.8, -900.0), ""),
    ],
)
def test_what_counts_as_converged(
    tmp_path: Path, values: tuple[float, float, float, float], problem: str
) -> None:
    write_run(tmp_path / "a", {300: values})
    (cell,) = read_cells(tmp_path)
    assert cell.problem == problem
    said = " ".join(verdict([cell], None))
    assert ("NOT CONVERGED" in said) == bool(problem)


@pytest.mark.parametrize(
    ("key", "value"), [("valid", "features/test"), ("text", "control"), ("batch_size", 80)]
)
def test_scores_of_other_data_are_not_compared(tmp_path: Path, key: str, value: Any) -> None:
    """A control on another text beside the runs, or another validation set."""
    for name, data in (("a", {}), ("b", {key: value})):
        write_run(tmp_path / name, {300: (20.0, 2.1, 1.0, -900.0)}, data=data)
    cells = read_cells(tmp_path)
    assert disagreement(cells) is None
    said = " ".join(verdict(cells, 0.1 if key == "batch_size" else disagreement(cells)))
    assert f"he runs differ in data.{key}" in said
    assert ("UNSURE" in said) == (key != "batch_size")


def test_agreement_decides() -> None:
    def cells(number: int) -> list[Any]:
        from w2v2dist.unsupervised.select import Cell
        from w2v2dist.unsupervised.selection import Candidate

        best = Candidate("a", 300, 15.0, TEXT_NLL, 1.0, -900.0, 1.0)
        return [Cell(str(i), Path(), "finished", [best], 0.5) for i in range(number)]

    assert verdict(cells(3), 0.1)[-2] == "CONVERGED: the best of them disagree in 10% of the phones"
    assert verdict(cells(3), 0.8)[-2].startswith("DOUBTFUL: the best of them disagree in 80%")
    assert verdict(cells(1), None)[-2].startswith("UNSURE: one run alone cannot be compared")
    assert verdict([], None) == ["NOT CONVERGED: no run has a validated checkpoint yet"]


def test_real_runs_are_read_and_compared(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_language(tmp_path / "language")
    for seed in (1, 2):
        path = write_gan_config(tmp_path, data, seed=seed, run_dir=str(tmp_path / f"sweep/{seed}"))
        config = read_config(str(path), ["loop.max_steps=2"])
        fit(config, UnsupervisedTask(config, unsupervised_source(config)), world, PreemptionFlag())
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"cells": ["1", "2", "3"]}))
    cells = read_cells(tmp_path / "sweep")
    assert [cell.state for cell in cells] == ["finished", "finished", "not begun"]
    assert cells[2].problem == "no validated checkpoint"
    assert all(cell.problem for cell in cells)  # after two steps
    assert disagreement(cells) is None
    assert main(["unsupervised", "select", str(tmp_path / "sweep")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT CONVERGED: none of 2 runs reads what looks like this text" in said
    assert "1 of 3 runs are not finished" in said
    assert "PER" in said
    # As if all had converged
    lenient = [
        type(c)(c.name, c.folder, c.state, c.candidates, 0.0)
        for c in cells
        if c.candidates and c.candidates[0].phone_usage > 0
    ]
    for cell in lenient:
        for i, one in enumerate(cell.candidates):
            cell.candidates[i] = type(one)(one.run, one.step, 1.0, 1.0, 1.0, -1.0)
    found = disagreement(lenient)
    assert found is not None
    assert 0 < found < 5
    assert disagreement([lenient[0], lenient[0]]) == 0


def test_what_cannot_be_chosen_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no runs: give the folder of"):
        read_cells(tmp_path)
    write_run(tmp_path / "a", {300: (20.0, 2.1, 1.0, -900.0)}, task="pretrain")
    with pytest.raises(ConfigError, match="is a run of task pretrain, but only trainings of task"):
        read_cells(tmp_path)
    assert main(["unsupervised", "select", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("left_out", ["alarms", "loop"])
def test_a_run_of_another_version_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left_out: str
) -> None:
    write_run(tmp_path / "a", {300: (20.0, 2.1, 1.0, -900.0)})
    path = tmp_path / "a" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config[left_out]
    path.write_text(yaml.safe_dump(config))
    assert main(["unsupervised", "select", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"config.yaml has no {left_out}." in said
    assert "it is of another version of w2v2dist" in said


def test_a_text_without_an_order_proves_nothing(tmp_path: Path) -> None:
    """Its phones in a random order are as likely as it is: a reading that uses all of them is not
    known to be one, whatever other runs read."""
    nothing = text_likeness(2.1, 2.0, 2.0)
    for name in ("a", "b"):
        write_run(tmp_path / name, {300: (20.0, 2.1, 1.0, -900.0)}, likeness=nothing)
    cells = read_cells(tmp_path)
    said = verdict(cells, 0.1)
    assert said[-2].startswith("UNSURE: the phones of the text are as likely in a random order")
    assert not any(line.startswith("CONVERGED") for line in said)

"""`w2v2dist unsupervised select`: what is chosen of a sweep, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gan_data import write_features, write_gan_config, write_language
from tests.training_parts import world as world  # a fixture
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.train import read_config
from w2v2dist.tasks.unsupervised import UnsupervisedTask, unsupervised_source
from w2v2dist.training.loop import fit
from w2v2dist.unsupervised.agreement import Agreement, compare
from w2v2dist.unsupervised.select import verdict
from w2v2dist.unsupervised.selection import text_likeness
from w2v2dist.unsupervised.sweep_runs import Cell, read_cells

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
    config: dict[str, Any] = {
        "task": task,
        "loop": {"max_steps": max_steps},
        "alarms": {"min_text_likeness": 0.5},
    }
    config["seed"] = sum(folder.name.encode())
    config["data"] = {
        "valid": "features/valid",
        "text": "phones",
        "batch_size": 160,
        **(data or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines: list[dict[str, Any]] = []
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
    assert found["verdict"][2].startswith("b cannot be read: ")
    assert found["verdict"][4].startswith("UNSURE")
    assert "meta.json is missing" in found["chosen_unusable"]["score"]
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
    assert compare(cells).rate is None
    said = " ".join(verdict(cells, Agreement(0.1) if key == "batch_size" else compare(cells)))
    assert f"he runs differ in data.{key}" in said
    assert ("UNSURE" in said) == (key != "batch_size")


def test_agreement_decides() -> None:
    def cells(number: int) -> list[Any]:
        from w2v2dist.unsupervised.selection import Candidate

        best = Candidate("a", 300, 15.0, TEXT_NLL, 1.0, -900.0, 1.0)
        return [Cell(str(i), Path(), "finished", [best], 0.5) for i in range(number)]

    assert (
        verdict(cells(3), Agreement(0.1))[-2]
        == "CONVERGED: the best of them disagree in 10% of the phones"
    )
    assert verdict(cells(3), Agreement(0.8))[-2].startswith(
        "DOUBTFUL: the best of them disagree in 80%"
    )
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
    assert compare(cells).rate is None
    assert main(["unsupervised", "select", str(tmp_path / "sweep")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT CONVERGED: none of 2 runs reads what looks like this text" in said
    assert "1 of 3 runs are not finished" in said
    assert "PER" in said
    # As if all had converged
    lenient = [
        Cell(c.name, c.folder, c.state, c.candidates, 0.0, training=c.training)
        for c in cells
        if c.candidates and c.candidates[0].phone_usage > 0
    ]
    for cell in lenient:
        for i, one in enumerate(cell.candidates):
            cell.candidates[i] = type(one)(one.run, one.step, 1.0, 1.0, 1.0, -1.0)
    found = compare(lenient).rate
    assert found is not None
    assert 0 < found < 5


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
    said = verdict(cells, Agreement(0.1))
    assert said[-2].startswith("UNSURE: the phones of the text are as likely in a random order")
    assert not any(line.startswith("CONVERGED") for line in said)


@pytest.fixture
def sweep(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two short real runs, whose logs say that they have converged, and their data."""
    data = write_language(tmp_path / "language")
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        path = write_gan_config(tmp_path, data, seed=seed, run_dir=str(tmp_path / f"sweep/{seed}"))
        config = read_config(str(path), ["loop.max_steps=2"])
        fit(config, UnsupervisedTask(config, unsupervised_source(config)), world, PreemptionFlag())
        log = tmp_path / f"sweep/{seed}/metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        good = {"valid/text_likeness": 1.0, "valid/phone_usage": 1.0, "valid/weighted_lm_ppl": seed}
        lines = [{**line, **good} if "valid/nll" in line else line for line in lines]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "sweep"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_copy_is_no_second_training(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that was moved, reads its data by another path, saves at other steps, or whose
    settings were changed behind its back: then its weights say so."""
    before = choose(sweep, capsys)
    assert before["disagreement"] is not None
    assert before["chosen_unusable"] == {"score": "", "paper": ""}
    shutil.rmtree(sweep / "2")
    shutil.copytree(sweep / "1", sweep / "copy", symlinks=True)
    config = sweep / "copy" / "config.yaml"
    edit(config, f"run_dir: {sweep / '1'}", "run_dir: elsewhere")
    edit(config, f"train: {sweep.parent / 'language/train'}", "train: language/train/")
    edit(config, "num_workers: 0", "num_workers: 2")
    for seed, words in (
        (1, "copy is the same training as 1 (seed, data and all settings that matter)"),
        (7, "copy has the same weights as 1: they are one training"),
    ):
        edit(config, "seed: 1\n", f"seed: {seed}\n")
        found = choose(sweep, capsys)
        said = " ".join(found["verdict"])
        assert words in said
        assert "UNSURE: one training alone cannot be compared with another" in said
        assert (found["converged"], found["disagreement"]) == (False, None)


def test_one_place_has_several_names(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid = sweep.parent / "language/valid"
    for name in (f"{valid}/", "language/valid"):
        shutil.copy(sweep / "1/config.yaml", sweep / "1/kept")
        edit(sweep / "1/config.yaml", f"valid: {valid}", f"valid: {name}")
        assert choose(sweep, capsys)["disagreement"] is not None
        os.replace(sweep / "1/kept", sweep / "1/config.yaml")


def test_what_cannot_be_read_is_named(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run, the file and the reason; a checkpoint that is chosen all the same is marked."""
    valid = sweep.parent / "language/valid"
    shutil.copytree(valid, sweep.parent / "kept")

    def said(reason: str, *, unusable: bool = False) -> None:
        found = choose(sweep, capsys)
        text = " ".join(found["verdict"])
        assert "UNSURE: checkpoints or features cannot be opened here" in text
        assert f"1 cannot be read: {reason}" in text
        assert bool(found["chosen_unusable"]["score"]) == unusable
        assert not found["converged"]

    with (valid / "features.npy").open("r+b") as file:
        file.seek(300)
        file.write(b"abc")
    said(f"{valid}/features.npy is damaged: the frames of")
    with (valid / "utterances.jsonl").open("a") as lines:
        lines.write("{}\n")
    said(f"the features in {valid} are damaged ('key' is missing): ")
    shutil.rmtree(valid)
    write_features(valid, 2, 10, prefix="v", dim=5)
    said(f"{sweep}/1/checkpoints/step_00000002 was trained on features with dim 8, but")
    shutil.rmtree(valid)
    shutil.copytree(sweep.parent / "kept", valid)
    (part,) = (sweep / "1/checkpoints/step_00000002").glob("*.distcp")
    os.truncate(part, 100)
    said(f"{part} is damaged", unusable=True)
    assert main(["unsupervised", "select", str(sweep), "--no-agreement"]) == 0
    assert "WHICH CANNOT BE OPENED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.yaml", "", "config.yaml is empty, but every training writes"),
        ("config.yaml", "task: [", "config.yaml is not valid YAML"),
        (
            "config.yaml",
            "max_steps: abc",
            "config.yaml: loop.max_steps is 'abc' but must be a whole",
        ),
        (
            "config.yaml",
            "min_text_likeness: abc",
            "alarms.min_text_likeness is 'abc' but must be a",
        ),
        ("config.yaml", "min_text_likeness: 7", "min_text_likeness is 7.0 but must be in [0, 1]"),
        ("metrics.jsonl", "{}", "metrics.jsonl has the line {}, but each must be a mapping whose"),
        ("metrics.jsonl", "[]", "metrics.jsonl has the line [], but"),
        ("metrics.jsonl", "5", "metrics.jsonl has the line 5, but"),
        ("metrics.jsonl", '{"step": "x"}', 'metrics.jsonl has the line {"step": "x"}, but'),
        (
            "metrics.jsonl",
            '{"step": 1, "valid/nll": "a"}',
            'has valid/nll "a" at step 1, but it must',
        ),
        ("metrics.jsonl", "\udcff", "metrics.jsonl is no text"),
    ],
)
def test_a_damaged_run_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, message: str
) -> None:
    """Alone it is refused, with the same words."""
    for name in ("a", "b"):
        write_run(tmp_path / name, {300: (20.0, 2.1, 1.0, -900.0)})
    (tmp_path / "a/checkpoints/step_00000001").mkdir()
    path = tmp_path / "a" / file
    key = text.partition(": ")[0]
    if file == "config.yaml" and key in ("max_steps", "min_text_likeness"):
        old = {"max_steps": "max_steps: 300", "min_text_likeness": "min_text_likeness: 0.5"}[key]
        edit(path, old, text)
    else:
        before = path.read_text() if file == "metrics.jsonl" else ""
        path.write_bytes(f"{before}{text}\n".encode(errors="surrogateescape"))
    found = choose(tmp_path, capsys)
    problems = {run["run"]: run["problem"] for run in found["runs"]}
    assert problems["b"] == ""
    assert message in problems["a"]
    assert found["verdict"][0] == f"a is left out, it is damaged: {problems['a']}"
    assert found["chosen"]["score"].startswith(str(tmp_path / "b"))
    with pytest.raises(ConfigError) as refused:
        read_cells(tmp_path / "a")
    assert str(refused.value) == problems["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "sweep.json is damaged (Expecting"),
        ("{}", "sweep.json is {}, without a list of cells"),
        ("[]", "sweep.json is [], without a list of cells"),
        ('{"cells": "a"}', 'sweep.json is {"cells": "a"}, without a list of cells'),
        ('{"cells": [1]}', "sweep.json has the cell 1, no name of a folder"),
        ('{"cells": ["../a"]}', 'sweep.json has the cell "../a", no name of a folder'),
        ('{"cells": ["a", "a"]}', 'sweep.json names the cell "a" twice'),
    ],
)
def test_a_damaged_list_of_cells(tmp_path: Path, text: str, message: str) -> None:
    write_run(tmp_path / "a", {300: (20.0, 2.1, 1.0, -900.0)})
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_cells(tmp_path)
    assert message in str(error.value)
    assert "remove it, and the same" in str(error.value)


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"t.txt is a file, no folder: give the folder of"):
        read_cells(tmp_path / "t.txt")
    with pytest.raises(ConfigError, match=r"nothere does not exist: give the folder of"):
        read_cells(tmp_path / "nothere")

"""Recipes: what a file stands for, what makes a stage another, and running them here."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from launch.submit import main
from tests.speech import talk, write_librispeech
from w2v2dist.cli import main as main_status
from w2v2dist.config import ConfigError
from w2v2dist.jobs.recipe_jobs import batches, dependency
from w2v2dist.jobs.recipe_stage import finish, make
from w2v2dist.recipes.expand import canonical, expanded, filled, words
from w2v2dist.recipes.prepare import hand_out, prepare
from w2v2dist.recipes.prints import corpus_print
from w2v2dist.recipes.recipe import Recipe, command_of, is_recipe, read_recipe, read_started
from w2v2dist.recipes.state import State, changes_of, states
from w2v2dist.reporting.recipe_status import rows
from w2v2dist.runtime.preemption import EXIT_PREEMPTED

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))
# Seconds of work: texts and n-grams of them
CHAIN: dict[str, Any] = {
    "recipe": "chain",
    "corpora": {"texts": "texts.txt"},
    "let": {"orders": [2, 3]},
    "stages": {
        "text": {"run": "w2v2dist lm text {corpora.texts} --output {out}"},
        "ngram": {
            "each": {"order": "orders"},
            "run": "w2v2dist lm ngram @text/text.txt --order {order} --output {out}/lm.arpa",
        },
        "again": {"run": "w2v2dist lm text @text/text.txt --output {out}"},
    },
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes CHAIN, changed, to a file; the working folder has its corpus."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("ONE TWO THREE\nTWO FOUR ONE\nONE TWO FOUR\n")

    def to_file(name: str = "chain.yaml", **changes: Any) -> Path:
        stages = {**CHAIN["stages"], **changes.pop("stages", {})}
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**CHAIN, **changes, "stages": stages}, sort_keys=False))
        return path

    return to_file


# What a file stands for


def test_loops_name_their_stages_and_the_last_runs_fastest() -> None:
    let = {"labels": [{"id": "10m", "hours": 0.17}, {"id": "1h"}], "seed": 5}
    found = list(expanded("train", {"label": "labels", "seed": [1, 2]}, let))
    assert [n for n, _ in found] == ["train_10m_1", "train_10m_2", "train_1h_1", "train_1h_2"]
    values = found[1][1]
    assert filled("{label}/{label.hours} {seed} {out} {corpora.x}", values, "x") == (
        "10m/0.17 2 {out} {corpora.x}"
    )
    assert filled({"a": ["{seed}", "{label}"]}, values, "x") == {"a": [2, "10m"]}
    with pytest.raises(ConfigError, match=r"x has \{lable\}, but there is no such value.*label"):
        filled("{lable}", values, "x")


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ({"a": "nowhere"}, "must be a list, or the name of one under let"),
        ({"a": []}, "at least one value"),
        ({"a": [{"name": "x"}]}, "has no id"),
        ({"a": ["10 min"]}, "letters, digits, _ and -"),
    ],
)
def test_loops_that_cannot_be(each: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(expanded("x", each, {"scalar": 1}))


def test_a_value_with_blanks_stays_one_word() -> None:
    assert words("evaluate --name {n} 'a b'", {"n": "10 min"}, "x") == (
        *("evaluate", "--name", "10 min", "a b"),
    )
    with pytest.raises(ConfigError, match="no command line"):
        words("evaluate 'open", {}, "x")


def test_the_order_of_options_and_processes_change_nothing() -> None:
    one = ("w2v2dist", "evaluate", "M", "--beam-size", "5", "--data", "a", "--workers", "3")
    assert canonical(one) == canonical((*one[:3], "--data=a", *one[3:5]))
    assert canonical(one) != canonical((*one[:3], "--data", "b", *one[3:5]))


def test_stages_stand_after_what_they_need(write: Write) -> None:
    late = {"first": {"run": "w2v2dist lm text @again/text.txt --output {out}"}}
    recipe = read_recipe(write(stages={**late, **CHAIN["stages"]}))
    names = list(recipe.stages)
    for name, stage in recipe.stages.items():
        assert all(names.index(need) < names.index(name) for need in stage.needs)
    assert recipe.stages["ngram_3"].needs == ("text",)
    assert recipe.stages["ngram_3"].commands[0][3] == "runs/recipes/chain/text/text.txt"
    assert recipe.stages["ngram_3"].outputs == ("lm.arpa",)
    assert recipe.dependents({"again"}) == ["first"]
    assert set(recipe.dependents({"text"})) == {"again", "first", "ngram_2", "ngram_3"}


@pytest.mark.parametrize(
    ("stages", "messages"),
    [
        ({"a": {"run": "w2v2dist lm text @b --output {out}"}}, ["a needs @b, but there is no"]),
        ({"a": {"run": "rm -rf {out}"}}, ["must be a command of this project"]),
        ({"a": {"run": "python evil.py {out}"}}, ["must be a command of this project"]),
        ({"a": {"run": "w2v2dist lm text x"}}, [r"must write to \{out\}"]),
        (
            {"a": {"run": "w2v2dist lm text x --output {out}", "hours": ["much"]}},
            [r"stages.a.hours is \['much'\] but must be a number"],
        ),
        (
            {"a": {"run": "w2v2dist lm text x --output {out}", "hours": -1}},
            ["stages.a.hours is -1 but must be a number, >= 0"],
        ),
        ({"a": {}}, ["either `train: CONFIG` or `run: COMMAND`"]),
        ({"a": {"train": "nowhere.yaml"}}, ["nowhere.yaml does not exist"]),
        ({"a": {"run": "w2v2dist lm text {corpora.b} --output {out}"}}, ["the corpora are: texts"]),
        (
            {"a": {"run": "w2v2dist lm text x --output {out}", "resources": {"mem": "1\n2"}}},
            ["a line"],
        ),
        ({"logs": {"run": "w2v2dist lm text x --output {out}"}}, ["choose another"]),
        ({"a": {"runs": "x"}}, ["did you mean stages.a.run?"]),
        (
            {
                "a": {"run": "w2v2dist lm text @b --output {out}"},
                "b": {"run": "w2v2dist lm text @a --output {out}"},
            },
            ["in a circle: a needs b needs a"],
        ),
        (
            {
                "a": {"train": str(ROOT / "configs/tiny_pretrain.yaml"), "set": {"loop.max": 1}},
                "b": {"run": "true {out}"},
            },
            ["stages.a: .*did you mean loop.max_steps", "stages.b.run is `true"],
        ),
        (
            {
                "a": {
                    "run": "w2v2dist evaluate M --output {out}",
                    "cell": {"row": "x", "split": "test", "decoder": "greedy", "seed": 1},
                }
            },
            ["split is 'test' but must be one of"],
        ),
    ],
)
def test_mistakes_are_named(write: Write, stages: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        read_recipe(write(stages=stages))
    for message in messages:
        assert error.match(message)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipes_of_the_repository(path: Path) -> None:
    recipe = read_recipe(path)
    assert is_recipe(path)
    assert recipe.name == path.stem
    cells = [s.cell for s in recipe.stages.values() if s.cell]
    assert len(cells) == len(set(cells)) > 0
    assert {s.kind for s in recipe.stages.values() if s.cell} == {"evaluate"}
    for stage in recipe.stages.values():
        assert stage.is_training == (stage.config is not None)


@pytest.mark.parametrize("name", ["librispeech_base", "librispeech_large", "lv60k"])
def test_every_label_split_decoder_and_three_seeds(name: str) -> None:
    recipe = read_recipe(ROOT / f"configs/recipes/{name}.yaml")
    cells = [s.cell for s in recipe.stages.values() if s.cell]
    rows_ = {c.row for c in cells}
    assert {r.rsplit(" ", 2)[0] for r in rows_} >= {"10 min", "1 h", "10 h", "100 h", "960 h"}
    for row in rows_:
        mine = {(c.split, c.decoder, c.seed) for c in cells if c.row == row}
        assert len(mine) == 4 * 3 * 3
    if name == "librispeech_large":
        assert "960 h LARGE from scratch" in rows_


# What makes a stage another


def prints(recipe: Recipe) -> dict[str, str]:
    return {name: stage.fingerprint for name, stage in recipe.stages.items()}


def changed(before: Recipe, after: Recipe) -> set[str]:
    a, b = prints(before), prints(after)
    return {name for name in a if a[name] != b.get(name)}


def test_only_what_depends_on_a_change_changes(write: Write) -> None:
    before = read_recipe(write())
    path = write()
    shuffled = yaml.safe_load(path.read_text())
    shuffled["stages"] = dict(reversed(shuffled["stages"].items()))
    path.write_text("# a comment\n" + yaml.safe_dump(shuffled, default_flow_style=True))
    assert changed(before, read_recipe(path)) == set()
    assert changed(before, read_recipe(path, ["folder=elsewhere", "corpora.texts=moved"])) == set()
    order = {"ngram": {**CHAIN["stages"]["ngram"], "each": {"order": [2, 4]}}}
    assert changed(before, read_recipe(write(stages=order))) == {"ngram_3"}
    text = {"text": {"run": "w2v2dist lm text {corpora.texts} --min-count 1 --output {out}"}}
    assert changed(before, read_recipe(write(stages=text))) == {*before.stages}


def test_a_command_that_becomes_a_training_is_said_in_words(write: Write) -> None:
    stages = {"again": None, "ngram": None}
    command = read_recipe(write(stages=stages)).stages["text"]
    train = {"text": {"train": str(ROOT / "configs/tiny_pretrain.yaml")}}
    training = read_recipe(write(stages={**stages, **train})).stages["text"]
    before = {"fingerprint": command.fingerprint, "what": command.what}
    old, new = changes_of(training, before)["command"]
    assert old == "w2v2dist lm text {corpora.texts} --output {out}"
    assert new == "a training (pretrain)"


def test_settings_that_cannot_matter_do_not_redo_a_training() -> None:
    path = ROOT / "configs/recipes/tiny.yaml"
    before = read_recipe(path)

    def after(*overrides: str) -> set[str]:
        return changed(before, read_recipe(path, list(overrides)))

    assert after("stages.pretrain.nodes=2", "stages.pretrain.set.loop.log_every=7") == set()
    assert after("resources.evaluate.mem=1G", "stages.finetune.set.data.num_workers=0") == set()
    seed = after("stages.transformer.set.seed=7")
    assert "transformer" in seed
    assert not seed & {"pretrain", "finetune_1", "greedy_1_test", "ngram_beam_1_test"}
    assert "transformer_beam_1_test" in seed
    best = after("stages.finetune.set.loop.validate_every=10")
    assert {"finetune_1", "finetune_2"} <= best
    assert "pretrain" not in best


def test_a_probe_does_not_redo_a_training(write: Write) -> None:
    train = {"train": str(ROOT / "configs/tiny_pretrain.yaml"), "set": {"data.train": "@text"}}
    path = write(stages={"ngram": None, "train": train})
    without = read_recipe(path).stages["train"]
    probe = ["stages.train.set.probe={every: 10, data: '@again', valid: '@text'}"]
    with_one = read_recipe(path, probe).stages["train"]
    assert with_one.needs == ("text", "again")  # it waits for the labels all the same
    assert with_one.fingerprint == without.fingerprint
    other = read_recipe(path, ["stages.train.set.data={train: '@again'}"]).stages["train"]
    assert other.fingerprint != without.fingerprint


def test_a_given_model_takes_the_place_of_the_pretraining_and_of_what_it_needs() -> None:
    path = ROOT / "configs/recipes/lv60k.yaml"
    whole, given = read_recipe(path), read_recipe(path, ["given.pretrain=org/model"])
    gone = set(whole.stages) - set(given.stages)
    assert gone == {"pretrain", "lv60k"}
    assert "pretrained=org/model" in given.stages["finetune_10m_1"].overrides
    other = read_recipe(path, ["given.pretrain=org/other"])
    differ = changed(given, other)
    assert "finetune_10m_1" in differ
    assert not differ & {"ngram", "ls960", "transformer"}
    with pytest.raises(ConfigError, match=r"given.pretrian: the recipe has no such stage"):
        read_recipe(path, ["given.pretrian=x"])


def test_the_version_of_a_corpus_is_its_names_sizes_and_texts(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "s1").mkdir(parents=True)
    (folder / "s1" / "x.flac").write_bytes(b"12345")
    (folder / "s1" / "x.trans.txt").write_text("ONE")
    first = corpus_print(folder)
    folder.rename(tmp_path / "b")
    folder = tmp_path / "b"
    (folder / ".hidden").write_text("x")
    assert corpus_print(folder) == first
    (folder / "s1" / "x.trans.txt").write_text("TWO")
    second = corpus_print(folder)
    (folder / "s1" / "x.flac").write_bytes(b"123456")
    third = corpus_print(folder)
    (folder / "s1" / "x.flac").rename(folder / "s1" / "y.flac")
    assert len({first, second, third, corpus_print(folder)}) == 4


# Running it here


def run(*arguments: object) -> int:
    return main(["--local", *map(str, arguments)])


def names(recipe: Recipe) -> dict[str, str]:
    return {name: state.name for name, state in states(recipe).items()}


def test_a_chain_runs_continues_and_redoes_what_has_changed(
    write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write()
    recipe = read_recipe(path)
    assert run("--recipe", path) == 0
    assert set(names(recipe).values()) == {"done"}
    made = {p: p.stat().st_mtime_ns for p in recipe.folder.glob("*/*") if p.is_file()}
    assert run(path) == 0  # the recipe in place of CONFIG
    assert "ngram_2: done before" in capsys.readouterr().out
    assert made == {p: p.stat().st_mtime_ns for p in made}

    other = {"ngram": {**CHAIN["stages"]["ngram"], "each": {"order": [2, 3]}}}
    other["ngram"]["run"] += " --prune 0 1"
    assert run(write(stages=other)) == 0
    said = capsys.readouterr().out
    assert "changed: ngram_3 (command: " in said
    assert said.count("done before") == 2  # text and again
    kept = sorted(p.name[:8] for p in (recipe.folder / "replaced").iterdir())
    assert kept == ["ngram_2-", "ngram_3-"]
    old = (recipe.folder / "replaced").glob("ngram_3-*/lm.arpa")
    assert next(old).read_text() != (recipe.folder / "ngram_3" / "lm.arpa").read_text()

    assert run(write()) == 0  # taken back: nothing has to be made again
    said = capsys.readouterr().out
    assert said.count("its results are there again") == 2
    assert said.count("done before") == 4


def test_a_failure_takes_what_depends_on_it_and_nothing_else(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {
        "broken": {"run": "w2v2dist lm ngram @text/nothing.txt --output {out}/lm.arpa"},
        "after": {"run": "w2v2dist lm text @broken/lm.arpa --output {out}"},
        "ngram": None,
        "last": {"run": "w2v2dist lm ngram @again/text.txt --order 2 --output {out}/lm.arpa"},
    }
    path = write(stages=bad)
    assert run("--recipe", path) == 1
    told = capsys.readouterr()
    recipe = read_recipe(path)
    assert names(recipe) == {
        "text": "done",
        "again": "done",
        "broken": "failed",
        "after": "blocked",
        "last": "done",
    }
    assert "broken: `w2v2dist lm ngram" in told.err
    assert "ended with exit status 2; log: runs/recipes/chain/logs/broken.log" in told.err
    assert "after: cancelled: it needs broken" in told.err
    assert f"this goes on: python launch/submit.py --local --recipe {path}" in told.err
    assert "nothing.txt" in (recipe.folder / "logs/broken.log").read_text()
    assert not (recipe.folder / "broken").exists()  # nothing under its final name
    shown = {name: (state.name, more) for name, state, more in rows(recipe, states(recipe), {})}
    assert shown["broken"][0] == "failed"
    assert "logs/broken.log" in shown["broken"][1]
    assert shown["after"] == ("blocked", "needs broken, which is failed")

    assert main_status(["status", str(recipe.folder)]) == 1
    assert f"goes on: python launch/submit.py --local --recipe {path}" in capsys.readouterr().out
    bad["broken"] = {"run": "w2v2dist lm ngram @text/text.txt --order 2 --output {out}/lm.arpa"}
    assert run("--recipe", write(stages=bad)) == 0
    assert capsys.readouterr().out.count("done before") == 3


def test_the_tables_are_read_with_the_settings_of_the_command(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = {"row": "a row", "split": "dev", "decoder": "greedy", "seed": 1}
    score = {"run": "w2v2dist evaluate @text --data @text --output {out}", "cell": cell}
    let = {"orders": [2, 3], "rarest": 1}
    text = {"run": "w2v2dist lm text {corpora.texts} --min-count {rarest} --output {out}"}
    path = write(let=let, stages={"text": text, "again": None, "ngram": None, "score": score})
    recipe = read_recipe(path, ["let.rarest=2"])
    command = f"python launch/submit.py --local --recipe {path} let.rarest=2"
    prepare(recipe, command)
    stage = recipe.stages["text"]
    stage.folder.mkdir()
    for name in stage.outputs:
        (stage.folder / name).touch()
    task = json.loads(hand_out(recipe, stage).read_text())
    finish(task, Path(task["folder"]), 1.0)
    assert names(read_recipe(path))["text"] == "changed"
    started = read_started(path)
    assert names(started) == {"text": "done", "score": "waiting"}
    assert command_of(started) == command
    assert main_status(["table", str(path)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(command)
    more = read_started(path, ["let.rarest=1"])  # over those of the command
    assert names(more)["text"] == "changed"
    assert command_of(more).endswith(f"{path} let.rarest=2 let.rarest=1")

    prepare(read_recipe(started.folder, ["stages.score=null"]))  # on top of what its file has
    assert names(read_started(path)) == {"text": "done"}
    # What has changed in the file since then has changed
    path.write_text(path.read_text().replace("--output", "--lower --output"))
    assert names(read_started(path)) == {"text": "changed"}


def test_a_folder_and_what_was_given_are_found_from_everywhere(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(stages={"again": None, "ngram": None, "small": CHAIN["stages"]["ngram"]})
    given = tmp_path / "mine"
    given.mkdir()
    before = prints(read_recipe(path, ["given.text=mine"]))
    for spelled in ("mine/", "./mine", given):
        assert prints(read_recipe(path, [f"given.text={spelled}"])) == before
    prepare(read_recipe(path, ["given.text=mine"]))
    folder = read_recipe(path).folder.absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert prints(read_recipe(folder)) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.train.nodes=x"], r"stages.train.nodes is 'x' but must be N or MIN-MAX"),
        (["stages.train.nodes=0"], r"stages.train.nodes is '0' but must be N or MIN-MAX"),
        (["stages.train.nodes=8-4"], r"stages.train.nodes is '8-4' but must be N or MIN-MAX"),
        (["recipe=../x"], r"recipe is '../x' but must be a name of letters"),
        (["recipe=my recipe"], r"recipe is 'my recipe' but must be a name of letters"),
        (["recipe=.."], r"recipe is '..' but must be a name of letters"),
        (["corpora.text=x"], r"corpora.text: the recipe has none; it has texts"),
        (["folder='{text.x}'"], r"folder is \{text.x\} but must have no \{"),
        (["folder=a,b"], r"folder is a,b but must have no ,"),
        (["let.order=[2]"], r"let.order: the recipe has none; it has orders"),
    ],
)
def test_mistakes_of_the_command_line(write: Write, overrides: list[str], message: str) -> None:
    train = {"train": str(ROOT / "configs/tiny_pretrain.yaml"), "set": {"data.train": "@text"}}
    stages = {"again": None, "ngram": None, "train": train}
    if "let.order=[2]" in overrides:
        stages = {"again": None, "ngram": None}
    path = write(stages=stages)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path, overrides)


def test_options_of_sbatch_whose_names_are_numbers(write: Write) -> None:
    recipe = read_recipe(write(resources={"text": {1: 2}}))
    assert recipe.stages["text"].resources == {"1": "2"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate M --data @text --beam-sise 5", "unrecognized arguments: --beam-sise 5"),
        ("evalute M --data @text", "invalid choice: 'evalute'"),
        ("lm nrgam @text/text.txt", "invalid choice: 'lm'"),
        ("evaluate M --data @text --beam-size many", "argument --beam-size: invalid"),
    ],
)
def test_a_mistyped_command_is_told_before_anything_is_made(
    write: Write, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    last = {"run": f"w2v2dist {command} --output {{out}}", "each": {"seed": [1, 2]}}
    assert run("--recipe", write(stages={"last": last})) == 2
    said = capsys.readouterr().err
    assert said.count("stages.last.run: ") == 1
    assert message in said
    assert not Path("runs").exists()


@pytest.mark.parametrize("folder", ["texts.txt", "texts.txt/below", "/dev/null", "link"])
def test_a_folder_that_is_a_file(
    write: Write, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    path = write()
    Path("link").symlink_to("nowhere")
    assert run("--recipe", path, f"folder={folder}") == 2
    assert f"folder is {folder}, but {folder.split('/below')[0]} is no folder" in (
        capsys.readouterr().err
    )


def test_a_report_before_the_first_stage_does_not_take_the_folder(write: Write) -> None:
    path = write(stages={"again": None, "ngram": None})
    assert main_status(["report", str(path)]) == 0
    assert Path("runs/recipes/chain/report.html").exists()
    assert run("--recipe", path) == 0


def test_a_value_of_the_command_line_for_a_stage_of_it(write: Write) -> None:
    more = ["stages.more.run=w2v2dist lm text {corpora.new} --output {out}", "corpora.new=x"]
    assert read_recipe(write(), more).stages["more"].reads == ("new",)


def test_ctrl_c_before_anything_is_at_work(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()

    def read(*_: object) -> str:  # a large corpus takes minutes
        raise KeyboardInterrupt

    monkeypatch.setattr("w2v2dist.recipes.prepare.corpus_print", read)
    assert run("--recipe", path) == 130
    command = f"python launch/submit.py --local --recipe {path}"
    assert f"interrupted; {command} goes on" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_leaves_nothing_under_a_final_name_and_the_command_goes_on(write: Write) -> None:
    words_ = ["ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT"] * 60_000  # seconds of reading
    Path("texts.txt").write_text("\n".join(words_))
    path = write(stages={"again": None, "ngram": None})
    command = [sys.executable, str(ROOT / "launch/submit.py"), "--local", "--recipe", str(path)]
    folder = Path("runs/recipes/chain")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while not (folder / "text.part" / "text.txt").exists() and not list(
            (folder / "text.part").glob(".*")
        ):
            assert process.poll() is None
            time.sleep(0.05)
        assert names(read_recipe(path))["text"] == "running"
        process.terminate()
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == EXIT_PREEMPTED
    assert "text: interrupted; python launch/submit.py --local --recipe" in said
    assert names(read_recipe(path)) == {"text": "stopped"}
    assert not (folder / "text").exists()
    assert run("--recipe", path) == 0


def test_corpora_that_are_not_there_are_named_together_before_anything_is_done(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"other": {"run": "w2v2dist lm text {corpora.more} --output {out}"}}
    path = write(corpora={"texts": "nowhere.txt", "more": None}, stages=more)
    assert run("--recipe", path) == 2
    said = capsys.readouterr().err
    assert "corpora.texts is nowhere.txt, which is not there, but text reads it" in said
    assert "corpora.more is null, which is not there, but other reads it" in said
    assert run("--recipe", write(), "given.text=/nowhere/text", "given.again=org/name") == 2
    assert "given.text is /nowhere/text, which is not there" in capsys.readouterr().err
    assert not Path("runs/recipes/chain/text").exists()
    assert not Path("runs/recipes/chain/recipe.json").exists()


def test_a_corpus_that_is_empty_is_named_as_one_that_is_not_there(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mount/point").mkdir(parents=True)
    Path("texts.txt").write_text("")
    more = {"other": {"run": "w2v2dist lm text {corpora.more} --output {out}"}}
    assert run("--recipe", write(corpora={"texts": "texts.txt", "more": "mount"}, stages=more)) == 2
    said = capsys.readouterr().err
    assert "corpora.texts is texts.txt, which is empty, but text reads it: give its place" in said
    assert "corpora.more is mount, which is empty, but other reads it: give its place" in said
    assert not Path("runs").exists()


def test_a_corpus_of_which_nothing_could_be_made_may_be_mended(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that is said to go on does so; what was made of a version still binds."""
    more = {
        "shards": {
            "run": "python shards/build.py --input {corpora.audio} --workers 1 --output {out}"
        },
        "ngram": None,
        "again": None,
    }
    path = write(corpora={"texts": "texts.txt", "audio": "audio"}, stages=more)
    Path("audio").mkdir()
    Path("audio/a.wav").write_text("the half of a download")
    Path("texts.txt").write_text("\n\n")
    assert run("--recipe", path) == 1
    assert names(read_recipe(path)) == {"text": "failed", "shards": "failed"}
    Path("texts.txt").write_text("ONE TWO THREE\n")
    Path("audio/a.wav").unlink()
    soundfile.write("audio/b.wav", talk(16_000, seed=1), 16_000)
    capsys.readouterr()
    assert run("--recipe", path) == 0
    said = capsys.readouterr().out
    assert "corpora.audio has changed since; nothing was made of it then" in said
    assert "corpora.texts has changed since; nothing was made of it then" in said
    kept = sorted(p.name for p in Path("runs/recipes/chain/replaced").iterdir())
    assert [name.split("-2")[0] for name in kept] == ["shards", "text.part"]
    soundfile.write("audio/c.wav", talk(16_000, seed=2), 16_000)
    remedy = r"corpora.audio: audio then.*there given.shards=runs/recipes/chain/shards would keep"
    with pytest.raises(ConfigError, match=remedy):
        prepare(read_recipe(path))


def test_a_folder_is_of_one_recipe_and_one_version_of_the_corpora(write: Write) -> None:
    stages = {"ngram": None, "again": None}
    assert run("--recipe", write(stages=stages)) == 0
    other = write("other.yaml", recipe="other", folder="runs/recipes/chain", stages=stages)
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="belongs to the recipe 'chain' and cannot be used for"):
        prepare(read_recipe(other))
    Path("texts.txt").write_text("ANOTHER TEXT\n")
    with pytest.raises(ConfigError, match=r"another version of corpora.texts: texts.txt then"):
        prepare(read_recipe(write(stages=stages)))
    Path("texts.txt").unlink()  # of no use any more: its stage is done
    prepare(read_recipe(write(stages=stages)))
    Path("texts.txt").mkdir()  # where its disk was mounted
    prepare(read_recipe(write(stages=stages)))
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"mine has thesis.tex in it and belongs to no recipe"):
        prepare(read_recipe(write(), ["folder=mine"]))
    after = {p: p.read_bytes() for p in Path("runs").rglob("*") if p in before}
    assert {p: v for p, v in before.items() if p.name not in ("lock", "recipe.yaml")} == {
        p: v for p, v in after.items() if p.name not in ("lock", "recipe.yaml")
    }


@pytest.mark.parametrize("where", [["--local"], []], ids=["here", "slurm"])
def test_what_is_refused_at_once_leaves_nothing_behind(
    write: Write,
    where: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither a new folder nor a lock in another's."""
    Path("bin").mkdir()
    (Path("bin") / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (Path("bin") / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:/bin")
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    assert main([*where, "--recipe", str(write()), "folder=mine"]) == 2
    assert "belongs to no recipe" in capsys.readouterr().err
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.tex"]
    corpora = "corpora.texts=nowhere"
    assert main([*where, "--recipe", str(write()), corpora, "folder=new"]) == 2
    assert "corpora.texts is " in capsys.readouterr().err
    assert not Path("new").exists()


def test_two_submitters_at_once(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write()
    hold = "import sys, time; from w2v2dist.training.lock import locked; from pathlib import Path\n"
    hold += "with locked(Path('runs/recipes/chain')): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert run("--recipe", path) == 1
        assert f"is in use by process {process.pid} on" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


def test_results_without_a_record_are_moved_and_never_mixed(write: Write) -> None:
    stages = {"again": None, "ngram": None}
    folder = Path("runs/recipes/chain/text")
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text("by hand")
    assert run("--recipe", write(stages=stages)) == 0
    (kept,) = Path("runs/recipes/chain/replaced").iterdir()
    assert (kept / "text.txt").read_text() == "by hand"
    assert "ONE TWO" in (folder / "text.txt").read_text()
    record = json.loads((folder / "done.json").read_text())
    assert record["kind"] == "text"


def test_dry_run_needs_no_corpora_and_touches_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--recipe", str(ROOT / "configs/recipes/lv60k.yaml")]) == 0
    said = capsys.readouterr().out
    recipe = read_recipe(ROOT / "configs/recipes/lv60k.yaml")
    for name, stage in recipe.stages.items():
        assert f"\n{name}  [waiting]" in said
        assert f" {stage.folder}" in said or f"={stage.folder}" in said
    assert "128 GPUs on 16 nodes" in said
    assert "3.5 TB" in said
    assert "note: corpora.librilight is data/librilight, which is not there" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)  # some thirty processes start one after the other
def test_the_tiny_recipe_from_speech_to_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    speech = write_librispeech(tmp_path / "speech", {str(100 + k): 12 for k in range(6)}, 4)
    model = {"conv_channels": 16, "num_layers": 1, "embed_dim": 32, "ffn_dim": 64, "num_heads": 2}
    model |= {"pos_conv_kernel": 16, "pos_conv_groups": 4, "final_dim": 16}
    trainings = ("pretrain", "finetune")
    small = [f"stages.{g}.set.model.{k}={v}" for g in trainings for k, v in model.items()]
    small += ["let.pretrain_steps=10", "let.finetune_steps=10", "let.lm_steps=10", "folder=out"]
    small += ["let.splits=[{id: test, column: test_clean}]"]
    command = ["--recipe", ROOT / "configs/recipes/tiny.yaml", f"corpora.speech={speech}", *small]
    assert run(*command) == 0
    recipe = read_recipe(Path("out"))
    assert set(names(recipe).values()) == {"done"}
    made = csv.DictReader(Path("out/table/table.csv").read_text(encoding="utf-8").splitlines())
    places = {(r["split"], r["decoder"]): r["num_seeds"] for r in made}
    decoders = ("greedy", "ngram", "transformer")
    assert places == dict.fromkeys([("test_clean", decoder) for decoder in decoders], "2")


# As jobs


def test_evaluations_that_wait_for_the_same_are_one_array() -> None:
    recipe = read_recipe(ROOT / "configs/recipes/librispeech_base.yaml")
    found = dict.fromkeys(recipe.stages, State(name="waiting"))
    made = list(batches(recipe, found))
    assert sorted(s.name for b in made for s in b) == sorted(recipe.stages)
    handed: set[str] = set()
    for batch in made:
        assert all(handed.issuperset(stage.needs) for stage in batch)
        handed.update(stage.name for stage in batch)
    sizes = {b[0].name: len(b) for b in made if len(b) > 1}
    assert len(sizes) == 45  # a model and a decoder: four sets
    assert set(sizes.values()) == {4}
    (array,) = (b for b in made if b[0].name == "ngram_beam_1h_2_dev_clean")
    jobs = {name: str(k) for k, name in enumerate(recipe.stages)}
    said = dependency(array, jobs, {})
    ok, any_ = (set(part.split(":")[1:]) for part in said.split(","))
    assert said.startswith("afterok:")
    assert ok == {jobs[n] for n in ("finetune_1h_2", "ngram", "tune_ngram_1h_2")}
    # Each looks for its own set, so that the loss of one set is not that of all
    assert any_ == {jobs[n] for n in jobs if n.startswith("heard_")}

    found |= dict.fromkeys([n for n in jobs if recipe.stages[n].cell is None], State(name="done"))
    found["table"] = State(name="waiting")
    (evaluations, table) = batches(recipe, found)
    assert len(evaluations) == 180
    assert table[0].name == "table"
    tasks = {stage.name: f"7_{k}" for k, stage in enumerate(evaluations)}
    assert dependency(table, tasks, {"7": 180}) == "afterok:7"
    assert dependency(table, {"ngram_beam_1h_2_dev_clean": "7_3"}, {"7": 180}) == "afterok:7_3"


def test_an_array_waits_for_what_its_last_needs(write: Write) -> None:
    stages: dict[str, Any] = {"ngram": None, "again": None, "text": None}
    for name, split in (("a", "x"), ("b", "y")):
        run_ = f"w2v2dist evaluate M --data @{split} --output {{out}}"
        stages |= {name: {"run": run_}}
    for split in ("x", "y"):
        stages[split] = {"run": "python shards/build.py --input {corpora.texts} --output {out}"}
    recipe = read_recipe(write(stages=stages))
    found = dict.fromkeys(recipe.stages, State(name="waiting"))
    made = [[s.name for s in batch] for batch in batches(recipe, found)]
    assert made == [["x"], ["y"], ["a", "b"]]


def test_a_job_whose_needs_are_not_done_makes_nothing(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_recipe(write())
    assert make(hand_out(recipe, recipe.stages["again"])) == 1
    assert "text is not done as again needs it" in capsys.readouterr().out
    assert not list(recipe.folder.glob("again*"))
    assert names(recipe)["again"] == "waiting"  # with text: it did not fail by itself
    end = recipe.folder / "jobs/text.end.json"
    end.write_text(json.dumps({"fingerprint": recipe.stages["text"].fingerprint, "why": "x"}))
    assert names(recipe)["text"] == "failed"
    assert states(recipe)["again"].name == "blocked"


def test_without_sbatch_nothing_is_prepared(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write()
    monkeypatch.setenv("PATH", "")
    assert main([str(recipe)]) == 2
    assert "sbatch is not on the PATH" in capsys.readouterr().err
    assert not read_recipe(recipe).folder.exists()


def test_options_of_one_training_are_refused(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--nodes", "4", "--recipe", str(write())]) == 2
    assert main(["--autotune", str(write())]) == 2
    capsys.readouterr()
    assert main(["--sweep", "--recipe", str(write())]) == 2
    assert "--sweep is of a grid of one training" in capsys.readouterr().err


def test_dry_run_checks_the_limit_of_time(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--time", "soon", "--recipe", str(write())]) == 2
    assert "--time is 'soon' but must be" in capsys.readouterr().err

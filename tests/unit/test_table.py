"""`w2v2dist table`: every figure of the papers, and a recipe's results beside them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from w2v2dist.cli import main
from w2v2dist.config import PAPER, ConfigError, read_paper, read_yaml
from w2v2dist.data.alphabet import alphabet
from w2v2dist.decode.results import Line, score, write
from w2v2dist.decode.significance import seeds_interval, t_quantile
from w2v2dist.jobs.recipe_stage import finish
from w2v2dist.recipes.recipe import DONE, Recipe, Stage, read_recipe
from w2v2dist.recipes.state import end_path, write_json
from w2v2dist.reporting.beside import tables_of
from w2v2dist.reporting.paper_tables import paper_errors, result_tables, setting_tables
from w2v2dist.reporting.table_forms import FORMS, HEAD

LETTERS = alphabet("letters")
CONFIG = Path(__file__).parents[2] / "configs/tiny_finetune.yaml"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
RECIPE = f"""
recipe: mine
folder: FOLDER
let: {{seeds: [1, 2, 3], splits: [dev_other, test_clean]}}
stages:
  shards:
    each: {{split: splits}}
    run: python shards/build.py --input somewhere/{{split}} --output {{out}}
  finetune:
    each: {{seed: seeds}}
    train: {CONFIG}
    set: {{pretrained: null, seed: "{{seed}}", data: {{train: "@shards_dev_other", valid: null}}}}
  greedy:
    each: {{seed: seeds, split: splits}}
    run: w2v2dist evaluate @finetune_{{seed}} --data @shards_{{split}} --output {{out}}
    cell: {{row: ROW, split: "{{split}}", decoder: greedy, seed: "{{seed}}"}}
"""


def recipe_of(folder: Path, row: str = "10 h BASE LS-960", **changed: str) -> Recipe:
    """A recipe of six evaluations, none of them made."""
    folder.mkdir(parents=True, exist_ok=True)
    text = RECIPE.replace("FOLDER", str(folder / "out")).replace("ROW", row)
    for old, new in changed.items():
        text = text.replace(old, new)
    (folder / "mine.yaml").write_text(text)
    return read_recipe(folder / "mine.yaml")


def evaluated(recipe: Recipe, name: str, wrong: int, *, of: str | None = None) -> Path:
    """What the stage's job leaves, with so many of 40 words wrong; `of`: another stage's asked."""
    stage = recipe.stages[name]
    lines = [Line(f"u{i}", "A B C D", " ".join("ABCD"[: 4 - (i < wrong)])) for i in range(10)]
    command = recipe.stages[of or name].commands[0]
    asked = {"model": f"{command[2]}/checkpoints/step_7", "data": command[4], "decoder": "greedy"}
    about = {**score(lines, LETTERS), "data": command[4], "asked": asked}
    write(stage.folder, lines, [], about, "word")
    done = {"fingerprint": stage.fingerprint, "what": stage.what}
    (stage.folder / DONE).write_text(json.dumps(done))
    return stage.folder / "evaluation.json"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the terminal is that the tests run in."""
    monkeypatch.setenv("COLUMNS", "100")


def table(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["table", *argv]) == 0
    return capsys.readouterr().out


def records(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    assert all([*row] == HEAD for row in rows)
    return rows


def leaves(value: Any) -> Iterator[float]:
    """Every number in nested values."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def numbers(text: str) -> set[float]:
    return {float(n.replace(",", "").rstrip(".")) for n in NUMBER.findall(text)}


@pytest.mark.parametrize("form", FORMS)
def test_every_number_of_the_papers_is_shown(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = table("--format", form, capsys=capsys)
    plain = shown.replace("\\", "") if form == "markdown" else shown
    assert {*leaves(read_yaml(PAPER))} <= numbers(plain)


def test_every_figure_stands_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        (r["table"], r["row"], r["decoder"], r["split"]): r
        for r in records(table("--format", "csv", capsys=capsys))
    }
    places = 0
    for number, about in read_paper("tables").items():
        for row, of in about["rows"].items():
            for decoder in of.keys() - {"source"}:
                for column, figure in zip(about["columns"], of[decoder], strict=True):
                    key = (str(number), row, decoder, column)
                    if figure is None:
                        assert key not in found
                        continue
                    mean, *deviation = figure if isinstance(figure, list) else [figure]
                    written = mean if isinstance(mean, str) else repr(float(mean))
                    assert found[key]["paper"] == written
                    assert found[key]["paper_deviation"] == "".join(map(repr, deviation))
                    assert found[key]["source"] == of.get("source", about["source"])
                    places += 1
    assert places == sum(r["source"] != "" for r in found.values()) > 250
    for labels, models in read_paper("weights").items():
        for model, of_lm in models.items():
            for lm, weights in of_lm.items():
                keys = [
                    ("weights", f"{labels} {model}", lm, w) for w in ("LM weight", "word score")
                ]
                assert [float(found[key]["paper"]) for key in keys] == weights


@pytest.mark.shared("PAPER.md")
def test_results_are_the_source(paper_path: Path) -> None:
    """Every figure of PAPER.md's results, TIMIT, ablation, days and GPUs."""
    text = paper_path.read_text()
    results = text.split("## Results to reproduce", 1)[1].split("## ", 1)[0]
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in results.splitlines() if "|" in x]
    count = 0
    for labels, model, *cells in rows[2:]:
        name = f"{labels} {model.replace(',', '')}"
        for decoder, cell in zip(("greedy", "ngram", "transformer"), cells, strict=True):
            for split, rate in zip(("test_clean", "test_other"), cell.split("/"), strict=False):
                if rate.strip():
                    assert paper_errors(split, decoder)[name] == float(rate)
                    count += 1
    assert count == 50
    dev, test = re.findall(r"PER ([\d.]+) dev, ([\d.]+) test", results)[0]
    found = [paper_errors(f"timit_{split}", "greedy") for split in ("dev", "test")]
    assert found == [{"TIMIT LARGE LS-960": float(rate)} for rate in (dev, test)]
    pairs = re.findall(r"([\d.]+) \(([\d.]+)\)", results)
    ablation = next(t for t in result_tables() if t.number == "4")
    ours = [f for row in ablation.rows for f in row.figures.values()]
    assert {(f.value, f.deviation) for f in ours} == {(float(a), float(b)) for a, b in pairs}
    said = " ".join(text.split())
    for of in read_paper("computing").values():
        assert f"{of['gpus']} GPUs, {of['days']} days" in said


@pytest.mark.shared("WAV2VEC_U.md")
def test_unsupervised_results_are_the_source(paper_path: Path) -> None:
    """Every number in the tables of section 3's results, and in the remarks below them."""
    text = paper_path.with_name("WAV2VEC_U.md").read_text()
    results = text.split("| LibriSpeech WER", 1)[1].split("## 4.", 1)[0]
    results = re.sub(r"seen|U[12]|2\.0|4-gram|XLSR-53|[Cc]ore|39", " ", results)
    known = {*leaves(read_paper("tables")), 100.0}
    named = numbers(json.dumps(read_paper("tables")))
    missing = {n for n in numbers(results) if n not in known and -n not in known} - named
    assert missing - {8.0, 3.0, 5.0, 20.0} == set()


def test_text_keeps_to_the_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_of(
        tmp_path, "a row that is my own and has a name that is far too long for a line"
    )
    evaluated(recipe, "greedy_1_test_clean", 1)
    for found in (tables_of(recipe), tables_of(None)):
        for width in (60, 100):
            lines = FORMS["text"](found, width).splitlines()
            assert [x for x in lines if len(x) > width and "--recipe" not in x] == []
    for columns, expected in (("70", 70), ("300", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        widest = max(map(len, table("--table", "finetune", capsys=capsys).splitlines()))
        assert expected - 12 < widest <= expected


def test_a_recipe_beside_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path)
    for seed, wrong in ((1, 2), (2, 3), (3, 5)):
        evaluated(recipe, f"greedy_{seed}_test_clean", wrong)
    evaluated(recipe, "greedy_1_dev_other", 4)
    path = str(recipe.path)
    dev, test = (
        next(r for r in records(table(path, "--format", "csv", capsys=capsys)) if r["split"] == s)
        for s in ("dev_other", "test_clean")
    )
    rates = [2 / 40, 3 / 40, 5 / 40]
    assert [dev["paper"], test["paper"]] == ["17.4", "11.1"]
    assert float(test["mean"]) == pytest.approx(100 * statistics.fmean(rates), abs=1e-12)
    assert float(test["deviation"]) == pytest.approx(100 * statistics.stdev(rates), abs=1e-12)
    half = 4.302652729911275 * 100 * statistics.stdev(rates) / math.sqrt(3)
    assert test["interval"] == "seeds"
    assert float(test["high"]) == pytest.approx(float(test["mean"]) + half, rel=1e-9)
    assert test["low"] == "0.0", "not below nothing"
    assert (test["num_seeds"], test["num_planned"], test["missing"]) == ("3", "3", "")
    assert test["seeds"] == "1=5.0 2=7.5 3=12.5"
    about = json.loads((recipe.stages["greedy_1_dev_other"].folder / "evaluation.json").read_text())
    assert dev["interval"] == "utterances"
    assert float(dev["low"]) == 100 * about["wer_low"]
    assert dev["deviation"] == ""
    assert dev["missing"] == (
        "seed 2 (greedy_2_dev_other): waiting; seed 3 (greedy_3_dev_other): waiting"
    )
    shown = table(path, capsys=capsys)
    assert "8.33 ± 3.82" in shown
    assert "1/3 seeds" in shown
    assert f"python launch/submit.py --recipe {path}" in shown
    assert "100 h BASE" not in shown
    assert "100 h BASE" in table(path, "--all", capsys=capsys)
    assert table(path, "--table", "3", capsys=capsys).startswith("Table 3: wav2vec 2.0: TIMIT")


def test_csv_is_the_same_to_the_last_digit(tmp_path: Path) -> None:
    """Whatever order the evaluations were made in."""
    texts = []
    for order in (("1", "2", "3"), ("3", "1", "2")):
        recipe = recipe_of(tmp_path)
        for seed in order:
            evaluated(recipe, f"greedy_{seed}_test_clean", int(seed))
        output = tmp_path / "table.csv"
        assert main(["table", str(recipe.path), "--output", str(output)]) == 0
        texts.append(output.read_bytes())
        shutil.rmtree(recipe.folder)
    assert texts[0] == texts[1]


def test_rows_that_no_paper_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path, "my | own_row <b>")
    evaluated(recipe, "greedy_1_test_clean", 1)
    shown = table(str(recipe.path), capsys=capsys)
    assert shown.startswith("Table own: Rows of the recipe that no paper has (WER, %)")
    marked = table(str(recipe.path), "--format", "markdown", capsys=capsys)
    rows = [line for line in marked.splitlines() if line.startswith("|")]
    assert "my \\| own\\_row \\<b>" in rows[2]
    bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert bars == [bars[0]] * len(rows)
    assert main(["table", "--table", "own"]) == 2
    assert "no rows that no paper has" in capsys.readouterr().err


def test_a_row_may_be_spelled_in_another_way(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, '"Continuous inputs / quantized targets"', dev_other="dev")
    (found,) = tables_of(recipe, number="4").tables
    assert [line.name for line in found.lines] == ["continuous inputs, quantized targets"]
    assert found.lines[0].decoder == "greedy"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"wer": 0.1', "cannot be used"),
        ("[1]", "it holds no mapping"),
        ('{"asked": ASKED}', "it has no error rate"),
        ('{"asked": ASKED, "wer": "x"}', "wer is 'x' but must be a number"),
        ('{"asked": ASKED, "wer": true}', "wer is True but must be a number"),
        ('{"asked": ASKED, "wer": -0.1}', "wer is -0.1 but must be a number, 0 or more"),
        ('{"asked": ASKED, "wer": NaN}', "wer is nan but must be a number"),
        ('{"asked": ASKED, "wer": 0.1, "wer_low": []}', "wer_low is [] but must be a number"),
        ('{"wer": 0.1}', "it is of model ?, not of finetune_1"),
        ("", "cannot be used"),
    ],
)
def test_a_broken_evaluation_is_said(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path)
    path = evaluated(recipe, "greedy_1_test_clean", 1)
    evaluated(recipe, "greedy_2_test_clean", 2)
    asked = json.dumps(json.loads(path.read_text())["asked"])
    path.write_text(content.replace("ASKED", asked))
    row = records(table(str(recipe.path), "--format", "csv", capsys=capsys))[-2]
    assert row["split"] == "test_clean"
    assert (row["num_seeds"], row["seeds"]) == ("1", "2=5.0")
    assert f"seed 1 (greedy_1_test_clean): not used: {path}" in row["missing"]
    assert said in row["missing"]


def test_what_is_of_something_else_is_said(tmp_path: Path) -> None:
    """Another model, other data, a stage that has changed since, a folder that no job has made."""
    recipe = recipe_of(tmp_path)
    evaluated(recipe, "greedy_1_test_clean", 1, of="greedy_2_test_clean")
    evaluated(recipe, "greedy_2_test_clean", 1, of="greedy_2_dev_other")
    (evaluated(recipe, "greedy_3_test_clean", 1).with_name(DONE)).unlink()
    said = {m.seed: m.why for m in _missing(recipe)}
    assert "it is of model " in said[1]
    assert "finetune_2/checkpoints/step_7, not of finetune_1" in said[1]
    assert "shards_dev_other, not of shards_test_clean" in said[2]
    assert f"no {DONE} of this recipe" in said[3]
    for seed in (1, 2, 3):
        evaluated(recipe, f"greedy_{seed}_test_clean", 1)
    assert _missing(recipe) == ()
    changed = recipe_of(tmp_path, valid="max_bad_samples: 3, valid")  # of the fine-tunings
    again = recipe_of(tmp_path, **{"pretrained: null": "pretrained: null, freeze_steps: 5"})
    assert changed.stages.keys() == again.stages.keys()
    assert [m.seed for m in _missing(again)] == [1, 2, 3]
    assert "was made before a change (what it needs)" in _missing(again)[0].why


def test_an_edited_evaluation_is_not_used(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    stage = recipe.stages["greedy_1_test_clean"]
    path = evaluated(recipe, stage.name, 4)
    task = {"folder": str(path.parent), "stage": stage.name, "kind": stage.kind}
    finish({**task, "what": stage.what, "fingerprint": stage.fingerprint}, path.parent, 1.0)
    assert [m.seed for m in _missing(recipe)] == [2, 3]
    path.write_text(path.read_text().replace('"wer": 0.1', '"wer": 0.01'))
    assert _missing(recipe)[0].why == (
        f"not used: {path} cannot be used (it is not what the stage wrote); remove it"
    )


def test_a_stage_may_be_a_link(tmp_path: Path) -> None:
    """A checkpoint's path is the real one, without the name of the link."""
    recipe = recipe_of(tmp_path)
    (tmp_path / "scratch").mkdir()
    recipe.folder.mkdir()
    (recipe.folder / "finetune_1").symlink_to(tmp_path / "scratch")
    path = evaluated(recipe, "greedy_1_test_clean", 1)
    about = json.loads(path.read_text())
    about["asked"]["model"] = str((tmp_path / "scratch/checkpoints/step_7").resolve())
    path.write_text(json.dumps(about))
    assert [m.seed for m in _missing(recipe)] == [2, 3]


def _missing(recipe: Recipe) -> tuple[Any, ...]:
    places = (p for p in tables_of(recipe).missing if p.column == "test_clean")
    return next((p.missing for p in places), ())


def test_another_rate_stands_apart(tmp_path: Path) -> None:
    """Errors of letters are no word error rate."""
    recipe = recipe_of(tmp_path)
    for seed in (1, 2, 3):
        path = evaluated(recipe, f"greedy_{seed}_test_clean", 1)
        about = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in about.items() if not k.startswith("wer")}))
    paper, own = tables_of(recipe).tables
    assert [*paper.lines[0].ours] == ["dev_other"]
    assert (own.table.rate, own.table.columns) == ("CER", ("test_clean",))


def test_what_blocks_a_place_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However far up it stands; others wait."""
    recipe = recipe_of(tmp_path)
    stage = recipe.stages["shards_dev_other"]
    end = {"fingerprint": stage.fingerprint, "why": "the corpus is gone"}
    write_json(end_path(recipe.folder, stage.name), end)
    shown = " ".join(table(str(recipe.path), capsys=capsys).split())
    assert (
        "dev_other seeds 1, 2, 3; test_clean seeds 1, 2, 3: shards_dev_other failed: the" in shown
    )
    write_json(end_path(recipe.folder, stage.name), {**end, "fingerprint": "another"})
    assert "seeds 1, 2, 3: waiting" in " ".join(table(str(recipe.path), capsys=capsys).split())


def test_two_stages_of_one_place(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, **{'seed: "{seed}"}\n': "seed: 1}\n"})
    with pytest.raises(ConfigError, match="greedy_2_dev_other has the cell of another stage"):
        tables_of(recipe)


def test_a_recipe_without_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path, **{"    cell:": "    # cell:"})
    assert main(["table", str(recipe.path)]) == 2
    assert "no stage of mine has a cell" in capsys.readouterr().err
    assert "Table 1:" in table(str(recipe.path), "--all", capsys=capsys)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in {
        (str(tmp_path / "none.yaml"),): "does not exist",
        (str(tmp_path),): "is no recipe's folder: it has no recipe.yaml",
        (str(CONFIG),): "is no recipe: it has no key `recipe`",
        ("--table", "5"): "--table is '5' but must be one of 1, 2, 3, 4, U1",
        ("--table", ""): "--table is '' but must be one of 1, 2, 3, 4, U1",
        ("--output", str(tmp_path)): "directory",
        ("--output", "x.html"): "x.html, but tables are written as .txt, .md, .csv",
    }.items():
        assert main(["table", *argv]) == 2, argv
        assert said in capsys.readouterr().err


def test_report_of_a_recipe(tmp_path: Path) -> None:
    """Before anything is trained, too; a name cannot break the page."""
    recipe = recipe_of(tmp_path, "<script>x</script>")
    evaluated(recipe, "greedy_1_test_clean", 2)
    assert main(["report", str(recipe.path)]) == 0
    page = (recipe.folder / "report.html").read_text()
    assert "Tables of mine" in page
    assert "5.00, " in page
    assert "&lt;script&gt;x" in page
    assert "<script>x" not in page
    assert "no LM, dev_other seeds 1, 2, 3; test_clean seeds 2, 3: waiting" in page


def test_settings_say_whose_they_are() -> None:
    shown = {table.number: table for table in setting_tables()}
    rates = [r for r in shown["finetune"].rows if r.name == "schedule.peak_lr"]
    assert {r.figures["value"].text: r.figures["of"].text for r in rates} == {
        "5e-5": "base_10m, base_1h, base_10h",
        "3e-5": "base_100h, large_100h, large_960h",
        "1e-4": "base_960h, large_10m, large_10h, timit",
        "3e-4": "large_1h",
    }


def test_interval_over_seeds() -> None:
    """The quantiles of Student's t as tables print them."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042}
    assert {n: round(t_quantile(n), 3) for n in printed} == printed
    assert round(t_quantile(10_000), 3) == 1.960
    low, high = seeds_interval([0.1, 0.12])
    assert high - 0.11 == pytest.approx(12.706 * math.sqrt(0.0002) / math.sqrt(2), rel=1e-4)
    assert low == 0.0
    assert seeds_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


def test_stage_has_what_the_table_reads(tmp_path: Path) -> None:
    stage: Stage = recipe_of(tmp_path).stages["greedy_1_dev_other"]
    assert stage.cell is not None
    assert stage.needs == ("finetune_1", "shards_dev_other")

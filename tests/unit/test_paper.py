"""`w2v2dist paper`: what it says of the shipped configurations and of changed ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from w2v2dist.cli import main
from w2v2dist.config import flatten, read_paper, read_yaml, to_dict
from w2v2dist.reporting.paper import compare, references, show, written_reasons
from w2v2dist.tasks.train import read_config

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = [*references("pretrain"), *references("finetune")]
TEXTS = "language_model"
GAN = "unsupervised"
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name != "recipes" and not path.name.startswith(("common_", "sweep_"))
)
PRECISION = (
    "bf16 instead of fp16 (released file) [all of F: fp16, which underflows in large models]"
)
# Ours: fewer shapes for a GPU to plan for
OURS = {"data.crop_multiple"}
# Keys about where, how fast and how often, not about what is learned
SILENT = set(
    """
    run_dir seed task
    model.activation_checkpointing model.layer_drop_per
    data.train data.valid data.shuffle_window data.num_workers data.prefetch data.max_bad_samples
    data.read_retries data.read_timeout_s data.on_read_error
    loop.log_every loop.validate_every loop.save_every loop.keep_last loop.keep_every
    loop.async_save loop.log_samples
    loop.num_threads loop.timeout_s loop.stall_timeout_s
    engine.zero_stage engine.compile best_metric
    data.units data.text.form data.text.case data.text.punctuation data.text.keep
    alarms.on_alarm alarms.grace_steps alarms.chance_margin alarms.min_code_usage
    alarms.max_accuracy alarms.early_steps alarms.rollback_steps alarms.max_rollbacks
    probe.every probe.data probe.valid probe.layers probe.minutes probe.steps probe.lr
    """.split()
)


def lines(path: Path, *overrides: str, reference: str | None = None) -> list[str]:
    return compare(read_config(str(path), [*overrides]), path, [*overrides], reference)


def table(found: list[str]) -> dict[str, str]:
    """Key -> the rest of its line."""
    parts = (re.split(r" {2,}", line.strip(), maxsplit=1) for line in found if line[:2] == "  ")
    return {key: text for key, text in parts}


def path_of(name: str) -> Path:
    return next(path for path in FILES if path.stem == name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_shipped_file(path: Path) -> None:
    found = lines(path)
    values = flatten(to_dict(read_config(str(path), [])))
    assert re.fullmatch(r".* compared with \w+: \d+ deviations?", found[0])
    assert found[0].split(": ")[-1].split()[0] == str(len(table(found)))
    assert {*table(found)} - {"utterances a slot"} <= values.keys()
    warned = [line for line in found if line.startswith("WARNING")]
    small = path.stem.startswith("tiny") or path.parent.name == "demo"
    tiny = small and values["task"] != TEXTS  # whose batch no source states
    # The reference's rate for pseudo-labels belongs to batches of a third of the fine-tuning's
    assert len(warned) == (1 if tiny or path.stem == "selftrain" else 0)
    if path.stem in references(GAN):
        assert found[1] == f"utterances per step, and sentences: 160; {path.stem} 160: the same"
        assert {*table(found)} <= {*references(GAN)[path.stem].differences}
    if path.stem in NAMES:
        assert f" compared with {path.stem}: " in found[0]
        assert found[1].endswith("h: the same")
        # nothing but what the sources themselves disagree about, and what is said to be ours
        known = {*references(values["task"])[path.stem].differences} | OURS
        assert {*table(found)} <= known
        assert all("[ours: " in text for key, text in table(found).items() if key in OURS)


@pytest.mark.parametrize("name", ["base_ls960", "base_10h"])
def test_every_key_is_compared_or_silent(name: str) -> None:
    """A new key has to be put into one of the two sets; most of CTC's model is no concern of it."""
    values = flatten(to_dict(read_config(str(path_of(name)), [])))
    compared = references(values["task"])[name].values
    missing = {*values} - {*compared} - SILENT
    unused = {key for key in missing if key.split(".")[0] == "schedule"}  # the other schedule's
    if values["task"] == "finetune":
        assert all(k.startswith("model.") or k in ("data.max_crop", "data.min_samples")
                   for k in missing - unused)  # fmt: skip
    else:
        assert missing - unused == {"model.channel_mask_length", "data.tokens"}
    assert {*compared} <= {*values}


ARITHMETIC = {
    "losses.padding": "fairseq (released file) instead of masked (paper) "
    "[the formulas know no padding, the released code counts it]",
    **{
        f"losses.{key}": f"{ours} (released file) instead of {theirs} (paper) "
        "[the weights belong to the released code]"
        for key, ours, theirs in (
            ("penalty_norm", "per_channel", "whole"),
            ("smoothness", "mean", "sum"),
            ("diversity", "perplexity", "entropy"),
        )
    },
}


def test_training_without_labels() -> None:
    """Code and paper side by side: what the paper searched is no deviation from it."""
    v1, quoted = path_of("v1"), "(paper, as others quote it)"
    same = "[the file is what others trained with]"
    assert table(lines(v1)) == ARITHMETIC | {
        "schedule.peak_lr": f"4e-4 (released file) instead of 1e-4 {quoted} {same}",
        "schedule.discriminator_peak_lr": f"5e-4 (released file) instead of 1e-5 {quoted} {same}",
    }
    assert table(lines(path_of("v2"))) == ARITHMETIC | {
        "loop.max_steps": f"150,000 (released file) instead of 100,000 {quoted} "
        "[the best checkpoint is chosen in both]"
    }
    searched = table(lines(v1, "losses.diversity_weight=2"))["losses.diversity_weight"]
    grid = "(paper's grid, as others quote it)"
    assert searched == f"2 {grid} instead of 4 (released file) [a sweep of the paper chooses]"
    neither = table(lines(v1, "losses.diversity_weight=3"))["losses.diversity_weight"]
    assert neither == f"3 instead of 2 or 4 {grid} or 4 (released file) [command line]"
    papers = ["padding=masked", "penalty_norm=whole", "smoothness=sum", "diversity=entropy"]
    found = table(lines(v1, *(f"losses.{text}" for text in papers)))
    assert found["losses.penalty_norm"].startswith("whole (paper) instead of per_channel (released")


@pytest.mark.parametrize(("rows", "warns"), [(8, True), (40, True), (41, False), (160, False)])
def test_a_small_batch_without_labels(rows: int, warns: bool) -> None:
    found = lines(path_of("v2"), f"data.batch_size={rows}")
    assert found[1].startswith(f"utterances per step, and sentences: {rows}; v2 160: ")
    assert ["set data.batch_size=160" in line for line in found if "WARNING" in line] == [True] * (
        warns
    )


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_every_key_without_labels_is_compared_or_silent(name: str) -> None:
    values = flatten(to_dict(read_config(str(path_of(name)), [])))
    reference = references(GAN)[name]
    silent = SILENT | {"data.text", "alarms.min_discriminator_loss", "alarms.min_text_likeness"}
    missing = {*values} - {*reference.values} - silent
    shape = {key for key in missing if key.startswith("schedule.")}  # of schedules with a shape
    assert missing - shape == ({"model.num_targets"} if name == "v1" else set())
    assert {*reference.values, *reference.differences} <= {*values}


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_sweeps_are_what_the_paper_searched(name: str) -> None:
    differences = references(GAN)[name].differences
    searched = {k: d["searched"] for k, d in differences.items() if "searched" in d}
    sweep = read_yaml(CONFIGS / "unsupervised" / f"sweep_{name}.yaml")
    assert sweep["grid"] == searched


def test_the_page_says_where_code_and_paper_differ() -> None:
    page = (CONFIGS.parent / "docs" / "unsupervised.md").read_text()
    said = page.partition("## Where code and paper differ")[2].partition("\n## ")[0]
    for name in ("v1", "v2"):
        for key, of in references(GAN)[name].differences.items():
            if "paper" in of:
                assert f"`{key}" in said
                assert show(of["paper"]) in said


def test_language_model_is_the_papers() -> None:
    found = lines(path_of("transformer_librispeech"))
    assert found == [
        f"{path_of('transformer_librispeech')} compared with transformer_librispeech: 0 deviations",
        "tokens per step: 131,072 at most; transformer_librispeech: no source says how many",
    ]
    (reference,) = references(TEXTS).values()
    values = flatten(to_dict(read_config(str(path_of("transformer_librispeech")), [])))
    missing = {k for k in values if k.startswith("model.")} - {*reference.values} - SILENT
    assert missing == {f"model.{n}" for n in ("dropout", "attention_dropout", "activation_dropout")}
    assert "model.num_layers" in table(lines(path_of("tiny_letters")))


def test_where_paper_and_released_file_differ() -> None:
    ours = table(lines(path_of("large_lv60k")))
    assert ours.pop("data.crop_multiple").startswith(
        "3,200 instead of 1 (paper and released file) [ours: "
    )
    assert ours == {
        "loop.max_steps": "600,000 (paper) instead of 1,000,000 (released file) "
        "[the file is a later model's]",
        "engine.precision": PRECISION,
        "schedule.peak_lr": "3e-4 (paper) instead of 5e-3 (released file) "
        "[the file is a later model's and doubtful]",
        "utterances a slot": "any number (paper) instead of at most 4 (released file) "
        "[the file is a later model's]",
    }
    released = table(lines(path_of("large_lv60k"), "schedule.peak_lr=5e-3"))
    assert released["schedule.peak_lr"].startswith("5e-3 (released file) instead of 3e-4 (paper)")
    neither = table(lines(path_of("large_lv60k"), "schedule.peak_lr=1e-3"))
    assert neither["schedule.peak_lr"] == (
        "1e-3 instead of 3e-4 (paper) or 5e-3 (released file) [command line]"
    )


def test_reasons_are_the_files_comments(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(
        "task: pretrain\nrun_dir: '# no comment'\n"
        "model: {layer_drop: 0.1, dropout: 0.2}   # two at once\nloop:\n"
        "  max_steps: 7  # short\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text("base: parent.yaml\nmodel:\n  dropout: 0.3\n")
    assert written_reasons(child) == {
        "task": "parent.yaml",
        "run_dir": "parent.yaml",
        "model.layer_drop": "two at once",
        "model.dropout": "child.yaml",
        "loop.max_steps": "short",
    }
    found = table(lines(child, "seed=3", "model.num_heads=8"))
    assert found == {
        "model.num_heads": "8 (paper) instead of 12 (released file) [the released model has 12]",
        "model.dropout": "0.3 instead of 0.1 (paper and released file) [child.yaml]",
        "model.layer_drop": "0.1 instead of 0.05 (paper and released file) [two at once]",
        "loop.max_steps": "7 instead of 400,000 (paper and released file) [short]",
        "engine.precision": PRECISION,
    }


@pytest.mark.parametrize(
    ("overrides", "warns"),
    [
        ("data.virtual_world_size=1", True),
        ("data.virtual_world_size=16", True),  # a quarter
        ("data.virtual_world_size=17", False),
        ("data.virtual_world_size=4 data.max_samples_per_slot=5_600_000", True),  # the same quarter
        ("data.virtual_world_size=1 schedule.peak_lr=6e-5", False),  # 5e-4 / 8
        ("data.virtual_world_size=1 schedule.peak_lr=1.3e-4", True),
        ("schedule.peak_lr=5e-3", False),  # too high, but made for no larger batch
    ],
)
def test_learning_rate_and_batch(overrides: str, warns: bool) -> None:
    found = lines(path_of("base_ls960"), *overrides.split())
    assert [line for line in found if line.startswith("WARNING")] == found[2:3] * warns


def test_the_warning_names_both_remedies() -> None:
    found = lines(path_of("base_ls960"), "data.virtual_world_size=1")
    assert found[1] == (
        "audio per step: 0.0243 h at most; base_ls960 1.56 h: 0.0156 times as much"  # a 64th
    )
    assert "schedule.peak_lr 5e-4 belongs to a much larger batch" in found[2]
    assert "data.virtual_world_size=64 " in found[2]
    assert "schedule.peak_lr=6.3e-5 " in found[2]
    remedied = lines(path_of("base_ls960"), "data.virtual_world_size=1", "schedule.peak_lr=6.3e-5")
    assert "WARNING" not in "".join(remedied)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_copy_finds_its_reference(name: str, tmp_path: Path) -> None:
    """By its values, not by its name; of references with equal values the first is taken."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {path_of(name)}\nseed: 5\nmodel: {{dropout: 0.15}}\n")
    expected = "base_10m" if name == "base_1h" else name
    assert f" compared with {expected}: " in lines(path)[0]


def test_another_reference() -> None:
    found = lines(path_of("large_ls960"), reference="base_ls960")
    assert table(found)["model.num_layers"].startswith("24 instead of 12 (paper and released file)")
    with pytest.raises(ValueError, match="base_10h but must be one of base_ls960, large_ls960"):
        lines(path_of("large_ls960"), reference="base_10h")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Long lines stay whole, and a mistake is exit status 2."""
    path = str(path_of("tiny_pretrain"))
    assert main(["paper", path, "seed=2", "--reference", "large_lv60k"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == lines(Path(path), "seed=2", reference="large_lv60k")
    assert len(printed) > 15
    assert main(["paper", path, "model.num_layer=2"]) == 2
    assert "did you mean model.num_layers?" in capsys.readouterr().err


def test_numbers_as_the_paper_prints_them() -> None:
    values = {
        "3e-4": 3e-4,
        "1.25e-5": 1.25e-5,
        "0": 0.0,
        "0.999995": 0.999995,
        "400,000": 400_000,
        "10": 10.0,
        "true": True,
        "[10, 3]": [10, 3],
        "fp16": "fp16",
    }
    assert [show(value) for value in values.values()] == list(values)


HOURS = ("1.6", "2.7")  # of audio a step, BASE and LARGE (section 4.2)


def test_audio_is_the_papers() -> None:
    hours = {name: re.findall(r"([\d.]+) h: the same", lines(path_of(name))[1])[0]
             for name in references("pretrain")}  # fmt: skip
    assert f"{float(hours['base_ls960']):.1f}" == HOURS[0]
    assert f"{float(hours['large_ls960']):.1f}" == f"{float(hours['large_lv60k']):.1f}" == HOURS[1]


@pytest.mark.shared("PAPER.md")
def test_hours_of_audio_are_the_source(paper_path: Path) -> None:
    text = " ".join(paper_path.read_text().split())
    assert re.findall(r"Batch: ([\d.]+) h and ([\d.]+) h of audio", text) == [HOURS]


@pytest.mark.shared("WAV2VEC_U.md")
def test_settings_without_labels_are_the_source(paper_path: Path) -> None:
    """The table of section 2, and the numbers of the networks above it."""
    text = paper_path.with_name("WAV2VEC_U.md").read_text().partition("## 2. ")[2]
    rows = {
        cells[0]: cells[1:]
        for line in text.partition("**Choosing")[0].splitlines()
        if line.startswith("|")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    v1, v2 = (references(GAN)[name] for name in ("v1", "v2"))
    rates = ("schedule.peak_lr", "schedule.discriminator_peak_lr")
    said = rows["lr G; D, constant"]
    assert said[0] == "{}; {} (paper {}; {}, **Q**)".format(
        *(show(v1.differences[k]["released"]) for k in rates),
        *(show(v1.differences[k]["paper"]) for k in rates),
    )
    assert said[1] == "{}; {}".format(*(show(v2.values[k]) for k in rates))
    assert v1.values["schedule.name"] == v2.values["schedule.name"] == "constant"
    assert rows["updates in all"] == [
        show(v1.values["loop.max_steps"]),
        "{} (paper {}, **Q**)".format(
            *(show(v2.differences["loop.max_steps"][k]) for k in ("released", "paper"))
        ),
    ]
    weights = [f"losses.{n}_weight" for n in ("penalty", "smoothness", "diversity", "auxiliary")]
    in_file = rows["λ, γ, η, δ in the file"]
    for found, reference in zip(in_file, (v1, v2), strict=True):
        parsed = [0.0 if cell.strip() == "–" else float(cell) for cell in found.split(",")]
        assert [reference.values[key] for key in weights] == parsed
    for found, reference in zip(rows["searched in the paper (**Q**)"], (v1, v2), strict=True):
        for key, letter in zip(weights, "λγηδ", strict=True):
            if key in reference.differences:
                values = ", ".join(f"{v:g}" for v in reference.differences[key]["searched"])
                assert f"{letter} {values}" in found
    adam = rows["Adam β, ε; decoupled decay G; D"][0]
    decays = ("weight_decay", "discriminator_weight_decay")
    optimizer = [v1.values[f"optimizer.{key}"] for key in decays]
    eps = show(v1.values["optimizer.eps"])
    assert adam == "0.5, 0.98, {}; {}; {}".format(eps, *map(show, optimizer))
    assert rows["batch"][0].startswith(f"{v1.values['data.batch_size']} utterances")
    assert "kernel 4, stride 1" in text
    assert "kernel 9, stride 3" in text
    assert "**initialised to 30**" in text
    assert "k = 6 (v1), 8 (v2)" in text


@pytest.mark.shared("PAPER.md")
def test_decoding_weights_are_the_source(paper_path: Path) -> None:
    """Every pair of LM weight and word score of paper.yaml."""
    lines = paper_path.read_text().split("Found values (LM weight, word score):", 1)[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:9]]
    names = [name.split() for name in rows[0][1:]]
    table = read_paper("weights")
    kinds = {"4-gram": "ngram", "Transformer": "transformer"}
    for labels, *cells in rows[2:]:
        for (model, kind), cell in zip(names, cells, strict=True):
            found = [float(number.replace("−", "-")) for number in cell.split(",")]
            assert table[labels][model][kinds[kind]] == found, (labels, model, kind)
    assert len(table) == len(rows[2:])

"""A language model through the same loop: the losses of any number of processes and ZeRO stage, a
run that goes on where it was, and one that learns more than how frequent words are."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.distributed.processes import event, finish, losses, samples, start, train
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data.vocabulary import Vocabulary
from w2v2dist.interop import OpenedLanguageModel, open_language_model, open_model
from w2v2dist.reporting.report import write_report
from w2v2dist.reporting.status import read_status
from w2v2dist.runtime.logging import read_jsonl

pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parents[2]
# The first cluster's embeddings are more than ZeRO 3 keeps on every process (100,000 elements)
MODEL = {"num_layers": 1, "embed_dim": 192, "ffn_dim": 192, "num_heads": 4, "cutoffs": [540]}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentences of this project's pages, in training and validation."""
    folder = tmp_path_factory.mktemp("text")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    words = re.sub(r"[^a-z'.;:|]+", " ", " ".join(p.read_text().lower() for p in pages))
    sentences = [" ".join(s.split()[:40]) for s in re.split("[.;:|]", words) if len(s.split()) > 2]
    (folder / "valid.txt").write_text("\n".join(sentences[::10]))
    kept = [s for i, s in enumerate(sentences) if i % 10]
    (folder / "train.txt").write_text("\n".join(kept) + "\n\n")  # a blank line is no sentence
    return folder


def write_config(folder: Path, text: Path, **values: Any) -> Path:
    """A training of a few seconds; `values` are merged one level deep."""
    config: dict[str, Any] = {
        "task": "language_model",
        "run_dir": str(folder / "run"),
        "model": dict(MODEL),
        "data": {
            "train": str(text / "train.txt"),
            "valid": str(text / "valid.txt"),
            "min_count": 2,
            "virtual_world_size": 4,
            "max_tokens_per_slot": 128,
            "max_tokens": 64,
            "num_workers": 0,
        },
        "loop": {
            "max_steps": 6,
            "log_every": 1,
            "validate_every": 6,
            "save_every": 3,
            "log_samples": True,
            "num_threads": 1,
            "timeout_s": 120,
        },
        "engine": {"precision": "fp32", "zero_stage": 1},
        "schedule": {"peak_lr": 2e-3, "warmup_steps": 3},
    }
    for key, value in values.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "lm.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def reference(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps in one process, uninterrupted."""
    folder = tmp_path_factory.mktemp("reference")
    train(write_config(folder, text), 1)
    return folder / "run"


@pytest.mark.parametrize(
    ("world_size", "zero_stage"),
    [
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, marks=pytest.mark.slow),
        pytest.param(1, 3, marks=pytest.mark.slow),
        (3, 3),
    ],
)
def test_losses_and_samples_do_not_depend_on_the_world_size(
    reference: Path, text: Path, tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    train(write_config(tmp_path, text, engine={"zero_stage": zero_stage}), world_size)
    run = tmp_path / "run"
    assert samples(run) == samples(reference)
    assert losses(run) == pytest.approx(losses(reference), rel=2e-5)
    validated = [read_jsonl(r / "metrics.jsonl")[-1]["valid/loss"] for r in (run, reference)]
    assert validated[0] == pytest.approx(validated[1], rel=2e-5)


@pytest.mark.parametrize(
    ("world_size", "zero_stage", "precision"),
    [
        (1, 1, "fp32"),
        pytest.param(2, 0, "fp32", marks=pytest.mark.slow),
        pytest.param(2, 3, "fp32", marks=pytest.mark.slow),
        pytest.param(2, 1, "bf16", marks=pytest.mark.slow),
        pytest.param(2, 3, "bf16", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_with_the_same_losses(
    text: Path, tmp_path: Path, world_size: int, zero_stage: int, precision: str
) -> None:
    engine = {"zero_stage": zero_stage, "precision": precision}
    config = write_config(tmp_path, text, engine=engine)
    train(config, world_size)
    run = tmp_path / "run"
    uninterrupted, encoded = losses(run), sorted((run / "texts").iterdir())
    for name in ("step_00000006", "latest", "best"):  # as if the run had died after step 3
        path = run / "checkpoints" / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    train(config, world_size)
    resumed = [r["loss"] for r in read_jsonl(run / "metrics.jsonl") if "loss" in r][-3:]
    assert resumed == [uninterrupted[s] for s in (4, 5, 6)]  # to the bit
    assert sorted((run / "texts").iterdir()) == encoded  # nothing was written anew
    assert event(run, "resumed")["step"] == 3


def unigram_perplexity(text: Path, vocabulary: Vocabulary) -> float:
    """Of the validation text, by how frequent words and ends are in that of training."""
    trained, valid = (
        (text / f"{name}.txt").read_text().splitlines() for name in ("train", "valid")
    )

    def tokens(lines: list[str]) -> Counter[int]:
        return Counter(i for line in lines if line for i in (*vocabulary.encode(line), 2))

    counts, seen = tokens(trained), tokens(valid)
    total = sum(counts.values()) + len(vocabulary)
    nats = sum(n * -math.log((counts[i] + 1) / total) for i, n in seen.items())
    return math.exp(nats / sum(seen.values()))


@pytest.mark.parametrize("units", ["words", pytest.param("characters", marks=pytest.mark.slow)])
def test_it_learns_more_than_how_frequent_words_are(
    text: Path, tmp_path: Path, units: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path,
        text,
        data={"units": units, "max_tokens_per_slot": 384, "max_tokens": 300},
        loop={"max_steps": 60, "validate_every": 30, "save_every": 30, "log_every": 30},
        model={"dropout": 0.2, "cutoffs": [540] if units == "words" else []},
        schedule={"name": "cosine", "peak_lr": 4e-3, "warmup_steps": 20},
    )
    train(config, 2)
    run = tmp_path / "run"
    validated = [r for r in read_jsonl(run / "metrics.jsonl") if "valid/loss" in r]
    opened = open_language_model(run)
    reached = min(r["valid/perplexity"] for r in validated)
    chance = unigram_perplexity(text, opened.vocabulary)
    assert reached < 0.8 * chance, f"{reached:.1f}, unigram {chance:.1f}"
    # The opened model says the same as the run's own validation
    (best,) = {r["valid/loss"] for r in validated if r["valid/perplexity"] == reached}
    assert perplexity(opened, (text / "valid.txt").read_text()) == pytest.approx(
        math.exp(best), 1e-4
    )
    assert opened.units == ("words" if units == "words" else "tokens")
    show_and_open(run, opened.source, capsys)


def perplexity(opened: OpenedLanguageModel, text: str) -> float:
    """One sentence at a time."""
    nats, number = 0.0, 0
    for line in filter(None, text.splitlines()):
        ids = opened.vocabulary.encode(line)
        with torch.no_grad():
            nll = opened.module(torch.tensor([[2, *ids]]), torch.tensor([[*ids, 2]]))
        nats, number = nats + float(nll.sum()), number + len(nll)
    return math.exp(nats / number)


def show_and_open(run: Path, step: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What reads a run reads this one, and a step folder alone has all that it needs."""
    status = read_status(run)
    assert status["tokens"] > 10_000
    assert main(["status", str(run)]) == 0
    assert main(["batches", str(run / "config.yaml"), "--step", "7"]) == 0
    shown = capsys.readouterr().out
    assert "tokens a second" in shown
    printed = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    assert printed == [samples(run)[7, slot] for slot in range(4)]
    page = write_report([run], run / "report.html").read_text()
    assert "Language model" in page
    assert "best perplexity on validation" in page
    alone = run.parent / "alone"
    shutil.copytree(step, alone)
    values = open_language_model(alone).module.state_dict()
    expected = open_language_model(run).module.state_dict()
    assert all(torch.equal(values[name], expected[name]) for name in expected)
    with pytest.raises(ConfigError, match="is a language model: it knows no audio"):
        open_model(run)
    assert main(["export", str(run), "--format", "fairseq", "--output", str(run / "x.pt")]) == 2
    assert "is a language model" in capsys.readouterr().err


def test_mistakes_end_all_processes(text: Path, tmp_path: Path, reference: Path) -> None:
    codes, output = finish(start(write_config(tmp_path, text), 2, f"data.train={text}/none.txt"))
    assert codes == [2, 2]
    assert "data.train names" in output
    config = write_config(tmp_path, text, model={"cutoffs": [100_000]})
    codes, output = finish(start(config, 2))
    assert codes == [2, 2]
    assert "model.cutoffs is [100000] but the vocabulary has" in output
    # Another vocabulary in the folder of a run
    config = write_config(tmp_path, text, run_dir=str(reference))
    codes, output = finish(start(config, 1, "data.min_count=1"))
    assert codes == [2]
    assert "data.min_count: 2 -> 1" in output

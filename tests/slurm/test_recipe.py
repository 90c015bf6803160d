"""The tiny recipe on a real Slurm: interrupted by a lost node and by a cancelled job it ends with
the same numbers, to the last digit, as without."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.cluster import REPOSITORY, Cluster
from tests.speech import write_librispeech
from w2v2dist.recipes.recipe import Recipe, Stage, read_recipe
from w2v2dist.recipes.state import task_path
from w2v2dist.runtime.logging import read_jsonl

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900, func_only=True)]
RECIPE = "configs/recipes/tiny.yaml"
MODEL = {"conv_channels": 16, "num_layers": 1, "embed_dim": 32, "ffn_dim": 64, "num_heads": 2}
MODEL |= {"pos_conv_kernel": 16, "pos_conv_groups": 4, "final_dim": 16, "num_codebook_entries": 8}
SMALL = [
    "let.pretrain_steps=60",
    "let.finetune_steps=40",
    "stages.pretrain.set.loop.save_every=5",
    "stages.finetune.set.loop.save_every=5",
    *(f"stages.{g}.set.model.{k}={v}" for g in ("pretrain", "finetune") for k, v in MODEL.items()),
    *(f"stages.{name}=null" for name in ("transformer", "tune_transformer", "transformer_beam")),
]
PROFILE = {"gpus_per_node": 0, "tasks_per_node": 1, "partition": "train", "time": "20"}
PROFILE |= {"environment": {"OMP_NUM_THREADS": "1"}}


class Chain:
    """A recipe's folder on the cluster, and the command that fills it."""

    def __init__(self, cluster: Cluster, name: str, speech: Path) -> None:
        self.cluster = cluster
        self.folder = cluster.root / "runs" / name
        profile = cluster.root / f"{name}.yaml"
        profile.write_text(yaml.safe_dump(PROFILE))
        self.settings = [f"folder={self.folder}", f"corpora.speech={speech}", *SMALL]
        self.command = [sys.executable, "launch/submit.py", "--cluster", str(profile)]
        self.command += ["--recipe", RECIPE, *self.settings]
        self.recipe: Recipe = read_recipe(REPOSITORY / RECIPE, self.settings)

    def give(self) -> str:
        """The command; what it prints."""
        done = subprocess.run(
            self.command,
            env=self.cluster.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stage(self, name: str) -> Stage:
        return self.recipe.stages[name]

    def job(self, name: str) -> str:
        """The number of a stage's job."""
        return str(json.loads(task_path(self.folder, name).read_text())["job"])

    def done(self, names: Sequence[str] = ()) -> bool:
        return all(self.stage(n).done() for n in names or self.recipe.stages)

    def wait_for_step(self, name: str, step: int) -> None:
        metrics = self.stage(name).folder / "metrics.jsonl"
        self.cluster.wait(
            lambda: any(r["step"] >= step for r in read_jsonl(metrics)), f"{name}: {step}", 300
        )

    def results(self) -> dict[str, Any]:
        """Every evaluation, and the table where the recipe makes one; without names of folders."""
        out = {}
        for path in sorted(self.folder.glob("*/evaluation.json")):
            out[path.parent.name] = path.read_text().replace(str(self.folder), "FOLDER")
        for path in sorted(self.folder.glob("table/*.csv")):
            out[path.name] = path.read_text().replace(str(self.folder), "FOLDER")
        return out


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    speakers = {str(100 + k): 12 for k in range(6)}
    return write_librispeech(tmp_path_factory.mktemp("speech"), speakers, 4)


def test_interrupted_twice_the_table_is_the_same(cluster: Cluster, speech: Path) -> None:
    whole = Chain(cluster, "whole", speech)
    said = whole.give()
    assert "evaluate" in said
    attacked = Chain(cluster, "attacked", speech)
    attacked.give()
    again = attacked.give()
    assert "nothing to submit" in again  # every stage has its job

    # A node is lost while the pre-training runs on it
    attacked.wait_for_step("pretrain", 10)
    pretraining = attacked.job("pretrain")
    node = cluster.job(pretraining)["NodeList"]
    cluster.kill_node(node)
    cluster.start_node(node)
    cluster.wait(lambda: attacked.done(["pretrain"]), "the pre-training", 300)
    assert cluster.job(pretraining)["Restarts"] == "1"

    # A fine-tuning is cancelled, and with it all that waits for it
    attacked.wait_for_step("finetune_1", 5)
    cancelled = attacked.job("finetune_1")
    cluster.command("scancel", cancelled)
    cluster.wait(
        lambda: cluster.job(cancelled).get("JobState") == "CANCELLED", "its job to end", 100
    )
    cluster.wait(
        lambda: cancelled not in cluster.command("squeue", "-h", "-r", "-o", "%i %E"),
        "what waits for it to leave the queue",
        60,
    )
    again = attacked.give()
    assert "finetune_1 " in again
    assert "pretrain" not in again.replace("finetune", "")
    cluster.wait(lambda: attacked.done(), "the recipe", 400)
    events = [e["event"] for e in read_jsonl(attacked.stage("finetune_1").folder / "events.jsonl")]
    assert "resumed" in events

    cluster.wait(lambda: whole.done(), "the recipe without interruption", 400)
    events = [e["event"] for e in read_jsonl(whole.stage("pretrain").folder / "events.jsonl")]
    assert "resumed" not in events
    first, second = whole.results(), attacked.results()
    assert first == second
    # Their log-probabilities are known by the weights that made them: the models are the same to
    # the bit, and those of two seeds are not
    kept = {n: json.loads(v)["emissions"] for n, v in first.items() if not n.endswith(".csv")}
    assert len(kept) == 10
    assert len(set(kept.values())) == 4
    assert len([name for name in first if name.endswith(".csv")]) == 1
    shutil.rmtree(attacked.folder)


def test_a_stage_that_fails_for_good(cluster: Cluster, tmp_path: Path) -> None:
    """What depends on it leaves the queue and is named; the rest is made, and nothing twice."""
    (tmp_path / "texts.txt").write_text("ONE TWO THREE\nTWO FOUR ONE\nONE TWO FOUR\n")
    ngram = "w2v2dist lm ngram @text/{file} --order 2 --output {out}/lm.arpa"
    stages: dict[str, Any] = {
        "text": {"run": "w2v2dist lm text {corpora.texts} --output {out}"},
        "broken": {"run": ngram.replace("{file}", "nothing.txt")},
        "after": {"run": "w2v2dist lm text @broken/lm.arpa --output {out}"},
        "last": {"run": ngram.replace("{file}", "text.txt")},
    }
    folder = cluster.root / "runs" / "broken"
    corpora = {"texts": str(tmp_path / "texts.txt")}
    values = {"recipe": "chain", "folder": str(folder), "corpora": corpora, "stages": stages}
    path, profile = tmp_path / "chain.yaml", tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(values))
    profile.write_text(yaml.safe_dump(PROFILE))
    command = [sys.executable, "launch/submit.py", "--cluster", str(profile), "--follow", str(path)]

    def give() -> subprocess.CompletedProcess[str]:
        environment, text = cluster.environment, True
        return subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=text, timeout=300
        )

    first = give()
    assert first.returncode == 1, first.stdout + first.stderr
    assert "broken failed: `w2v2dist lm ngram" in first.stderr
    assert f"log: {folder}/logs/broken-" in first.stderr
    assert "after was not made: needs broken, which is failed" in first.stderr
    assert "this goes on: python launch/submit.py" in first.stderr
    assert (folder / "last" / "lm.arpa").exists()
    assert not (folder / "broken").exists()
    stages["broken"]["run"] = ngram.replace("{file}", "text.txt")
    path.write_text(yaml.safe_dump(values))
    second = give()
    assert second.returncode == 0, second.stdout + second.stderr
    assert re.findall(r"job \d+: (\w+)", second.stdout) == ["broken", "after"]

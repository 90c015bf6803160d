"""Evaluation on several processes: what is found does not depend on how many there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.processes import MODEL, finish, start_command
from tests.lm_files import write_arpa
from w2v2dist.interop import save_huggingface
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC
from w2v2dist.runtime.logging import read_jsonl

pytestmark = pytest.mark.timeout(400)


def run(arguments: list[str], world_size: int) -> str:
    codes, output = finish(start_command(arguments, world_size))
    assert codes == [0] * world_size, output[-4000:]
    return output


def results(folder: Path) -> dict[str, Any]:
    files = {p.name: p.read_text() for p in folder.iterdir() if p.name != "evaluation.json"}
    about = json.loads((folder / "evaluation.json").read_text())
    return {**files, "evaluation.json": about}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that says something; with group norm, which hears all samples of
    a batch, padding as well."""
    torch.manual_seed(1)
    module = Wav2Vec2ForCTC(Wav2Vec2Config(**MODEL), 32)
    with torch.no_grad():
        module.token_projection.weight.mul_(20)
    folder = tmp_path_factory.mktemp("model") / "random"
    save_huggingface(module, folder)
    return folder


def test_any_number_of_processes_finds_the_same(model: Path, shards: Path, tmp_path: Path) -> None:
    arpa = write_arpa(tmp_path / "digits.arpa", ["ONE TWO", "TWO ONE ONE"])
    found = {}
    for world_size in (1, 2, 3):
        folder = tmp_path / str(world_size)
        command = ["evaluate", str(model), "--data", str(shards), "--output", str(folder / "e")]
        command += ["--lm", str(arpa), "--beam-size", "20", "--nbest", "3", "--workers", "2"]
        output = run(command, world_size)
        assert output.count("WER") == 1
        found[world_size] = results(folder / "e")
        (kept,) = (folder / "emissions").iterdir()
        found[world_size]["kept"] = (kept / "log_probs.npy").read_bytes()
        assert not [*(folder / "emissions").glob(".*")]
    assert found[1] == found[2] == found[3]
    assert found[1]["evaluation.json"]["num_utterances"] == 65


def test_trials_are_the_same_on_several_processes(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    arpa = write_arpa(tmp_path / "digits.arpa", ["ONE TWO", "TWO ONE ONE"])
    trials = []
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        command = ["evaluate", str(model), "--data", str(shards), "--output", str(folder)]
        command += ["--lm", str(arpa), "--beam-size", "5", "--workers", "1"]
        command += ["--emissions", str(tmp_path / "kept")]
        run([*command, "--tune", str(shards), "--trials", "4"], world_size)
        trials.append(read_jsonl(folder / "trials.jsonl"))
    assert len(trials[0]) == 4
    assert trials[0] == trials[1]
    assert len([*(tmp_path / "kept").iterdir()]) == 1, "the second run has heard nothing"

"""Runs of real processes, sharded or not, exported with one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchaudio

from tests.distributed.processes import MODEL, finish, start, train, write_config
from w2v2dist import checkpoint
from w2v2dist.cli import main
from w2v2dist.interop import load_fairseq, load_huggingface, save_huggingface
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_run_is_exported_to_every_library(shards: Path, tmp_path: Path, zero_stage: int) -> None:
    values = {
        "engine": {"zero_stage": zero_stage},
        "loop": {"max_steps": 2, "save_every": 2},
        "data": {"virtual_world_size": 2, "num_workers": 0, "valid": None},
    }
    train(write_config(tmp_path, "finetune", shards, **values), 2)
    run = tmp_path / "run"
    values = checkpoint.read_parameters(checkpoint.find(run))
    for library in ("fairseq", "huggingface", "torchaudio"):
        arguments = ["export", str(run), "--format", library, "--output", str(tmp_path / library)]
        assert main(arguments) == 0
    models = [load_fairseq(tmp_path / "fairseq"), load_huggingface(tmp_path / "huggingface")]
    for model in models:
        state = model.state_dict()
        assert state.keys() == values.keys()
        assert all(torch.equal(state[n].flatten(), values[n]) for n in state)
    theirs = torchaudio.models.wav2vec2_model(
        **json.loads((tmp_path / "torchaudio.json").read_text())
    ).eval()
    theirs.load_state_dict(torch.load(tmp_path / "torchaudio", weights_only=True))
    waveforms = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = theirs(waveforms)[0]
        assert (models[0](waveforms).logits - logits).abs().max() < 1e-4


def test_an_imported_model_transcribes(shards: Path, tmp_path: Path) -> None:
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**MODEL), 32)
    save_huggingface(model, tmp_path / "huggingface")
    imported = tmp_path / "imported"
    arguments = ["import", str(tmp_path / "huggingface"), "--output", str(imported)]
    assert main([*arguments, "--task", "finetune"]) == 0
    assert main(["evaluate", str(imported), "--data", str(shards)]) == 0
    (found,) = (imported / "evaluations").glob("*-greedy")
    assert len((found / "hypotheses.tsv").read_text().splitlines()) > 60


def test_an_imported_model_is_not_trained_on_as_it_is(shards: Path, tmp_path: Path) -> None:
    save_huggingface(Wav2Vec2ForCTC(Wav2Vec2Config(**MODEL), 32), tmp_path / "huggingface")
    imported = tmp_path / "imported"
    arguments = ["import", str(tmp_path / "huggingface"), "--output", str(imported)]
    assert main([*arguments, "--task", "finetune"]) == 0
    (imported / "config.yaml").unlink()  # past the check that the configuration is the same
    config = write_config(tmp_path, "finetune", shards, run_dir=str(imported))
    codes, output = finish(start(config, 2))
    assert codes == [2, 2]
    assert "was imported and holds no optimizer: it can only be fine-tuned" in output

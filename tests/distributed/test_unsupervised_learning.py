"""A training without labels breaks the cipher of a made language, and does not find it in the text
of another one; `select` tells them apart without labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from w2v2dist.cli import main
from w2v2dist.unsupervised.synthetic import write_synthetic

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cipher_of_level_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language = tmp_path / "language"
    write_synthetic(language, 2, seed=0)
    found = {}
    for name, text in (("own", "text"), ("control", "other")):
        run = tmp_path / name
        data = [f"data.{part}={language / part}" for part in ("train", "valid")]
        data += [f"data.text={language / text}", f"run_dir={run}", "seed=2", "loop.num_threads=1"]
        assert main(["train", str(ROOT / "configs/unsupervised/synthetic_2.yaml"), *data]) == 0
        capsys.readouterr()
        assert main(["unsupervised", "select", str(run), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert main(["unsupervised", "decode", str(run), "--output", f"{run}/read"]) == 0
    rates = {
        name: json.loads((tmp_path / name / "read/evaluation.json").read_text())["per"]
        for name in found
    }
    assert rates["own"] < 0.05
    assert rates["control"] > 0.5
    assert found["own"]["num_converged"] == 1
    assert found["control"]["num_converged"] == 0
    assert "NOT CONVERGED" in " ".join(found["control"]["verdict"])

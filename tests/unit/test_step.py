"""benchmarks/step.py: what it counts, times and says of engines that fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import loader, step
from benchmarks.machine import ROOT, table, write_json
from benchmarks.step_engine import (
    CONFIGS,
    MODELS,
    Engine,
    MasterAdam,
    count_flops,
    model_config,
    reason,
)
from benchmarks.step_page import markdown
from benchmarks.step_parts import REST, PartTimer, profile
from w2v2dist.interop.names import their_settings
from w2v2dist.jobs.work import work_of
from w2v2dist.tasks.train import read_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("model", ["base", "large"])
def test_flops_are_those_that_torch_counts_of_the_reference(model: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = model_config(model)
    settings = their_settings(config, "huggingface") | {"num_hidden_layers": 2}
    with torch.device("meta"):
        theirs = transformers.Wav2Vec2Model(
            transformers.Wav2Vec2Config(**settings, attn_implementation="eager")
        ).eval()
        wave = torch.empty(2, 80_000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(wave)
    counted = count_flops(config, 2, 80_000) - count_flops_of_layers(config, 2, 80_000)
    assert counted == pytest.approx(3 * counter.get_total_flops(), rel=1e-3)


def count_flops_of_layers(config: Any, rows: int, num_samples: int) -> float:
    """Of all layers but two, written out by hand."""
    t, e, f = config.num_frames(num_samples), config.embed_dim, config.ffn_dim
    projections, products, ffn = 4 * 2 * t * e * e, 2 * 2 * t * t * e, 2 * 2 * t * e * f
    return 3.0 * rows * (config.num_layers - 2) * (projections + products + ffn)


class Slow(torch.autograd.Function):
    """Sleeps 20 ms forward and 60 ms backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        time.sleep(0.06)
        return grad


class SlowAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Slow.apply(x)


class Toy(nn.Module):
    """Two layers with a residual connection around each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList(nn.ModuleDict({"attention": SlowAttention()}) for _ in "ab")

    def forward(self, wave: Tensor) -> Tensor:
        x = wave * self.weight
        for layer in self.layers:
            x = x + layer["attention"](x)
        return x.sum()


def test_parts_have_their_own_time_forward_and_backward() -> None:
    toy = Toy()
    parts = PartTimer(toy, CPU).seconds(lambda: toy(torch.ones(4)))
    assert set(parts) == {"attention", REST}
    assert 0.04 <= parts["attention"]["forward"] < 0.1
    assert 0.12 <= parts["attention"]["backward"] < 0.3
    assert toy.weight.grad is not None
    assert toy.weight.grad.tolist() == [4.0] * 4  # the hooks change nothing
    found = profile(lambda: toy(torch.ones(4)).backward(), CPU)
    assert found["kernels"] > 0
    assert found["costliest"]


def test_adam_keeps_fp32_weights_of_narrow_ones() -> None:
    narrow = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    adam = MasterAdam([narrow])
    for _ in range(100):  # updates of 1e-6: each is lost in bf16, and the sum is not
        narrow.grad = torch.ones_like(narrow)
        adam.step()
    assert adam.masters[0].dtype == torch.float32
    assert adam.masters[0][0].item() == pytest.approx(1 - 100e-6 - 100e-8, abs=1e-6)
    assert narrow[0].item() == 1.0


def test_reasons_name_the_remedy() -> None:
    assert "pass fewer --rows" in reason(torch.OutOfMemoryError("CUDA out of memory"))
    assert reason(ModuleNotFoundError("No module named 'x'")).startswith("not installed: ")


def test_a_json_file_is_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [*tmp_path.iterdir()] == [path]
    assert table(["x"], [[1]]) == "| x |\n| - |\n| 1 |"


@pytest.mark.parametrize("model", MODELS)
def test_a_step_has_the_samples_of_a_slot(model: str) -> None:
    name, rows, samples = MODELS[model]
    config = read_config(CONFIGS / f"{name}.yaml", ["model.num_layers=1"])
    assert rows * samples == work_of(config, gpu=True).amount


@pytest.mark.parametrize(
    ("program", "words", "error"),
    [
        (step, "--rows 0", "must be at least 1"),
        (step, "--samples 0", "must be at least 1"),
        pytest.param(
            *(step, "--precision fp16", "fp16 is of GPUs, and torch finds none"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it is no mistake on a GPU"),
        ),
        (step, "--timeout nan", "--timeout above 0"),
        (step, "--json .", "is a folder"),
        (loader, "--json .", "is a folder"),
        (loader, f"--json {__file__}/loader.json", "is no folder: name another place"),
        (step, f"--json {__file__}/deep/step.json", "is no folder: name another place"),
        (loader, "--config nope", "is no pre-training"),
        (loader, "--config tiny_finetune", "is no pre-training"),
        (loader, "--latency -1", "must be at least 0"),
        (loader, "--bandwidth 0", "must be above 0"),
        (loader, "--hours nan", "must be above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    program: Any, words: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.parse_args(words.split())
    assert error in capsys.readouterr().err


class Plain:
    """No module, but it has parameters."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.ones(1))

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def __call__(self, wave: Tensor) -> Tensor:
        return 3 * self.weight.sum()


def test_gradients_of_a_callable_are_not_kept_over_steps(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from tests.unit.test_step import Plain\n\ndef make_model(config):\n    return Plain()\n"
    )
    args = step.parse_args(["--model", "tiny", "--engine", str(tmp_path / "own.py")])
    engine = Engine(vars(args) | {"engine": args.engine[0]})
    for _ in range(2):
        engine.whole_step()
    assert engine.parameters[0].grad is not None
    assert engine.parameters[0].grad.tolist() == [3.0]


def test_an_engine_that_lasts_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n\ndef make_model(config):\n    return lambda wave: time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)  # of which the engine's process knows nothing
    args = step.parse_args(["--model", "tiny", "--rows", "1", "--engine", "slow.py"])
    row, process = step.Measured(engine=args.engine[0]), step.Process(args.engine[0], args)
    process.timeout_s = 0.1
    step.turn(process, row, 0)
    assert row.error == "no answer within --timeout 0.1 s"
    assert process.process.returncode == -9


PLUGINS = {
    "good.py": "import torch\n\ndef make_model(config):\n"
    "    m = torch.nn.Linear(9, 9)\n    return lambda wave: m(wave[:, :9]).pow(2).mean()\n",
    "late.py": "def make_model(config):\n    calls = []\n\n    def call(wave):\n"
    "        calls.append(1)\n        if len(calls) > 2:\n            raise ValueError('late')\n"
    "        return wave.sum().clone().requires_grad_()\n\n    return call\n",
    "dies.py": "import os\n\ndef make_model(config):\n    os.kill(os.getpid(), 9)\n",
    "empty.py": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["together", "one at a time"])
def test_engines_take_turns_and_one_that_fails_is_a_row(tmp_path: Path, how: str) -> None:
    arguments = []
    for name, text in PLUGINS.items():
        (tmp_path / name).write_text(text)
        arguments += ["--engine", str(tmp_path / name)]
    arguments += ["--one-at-a-time"] * (how != "together")
    done = subprocess.run(
        [sys.executable, "benchmarks/step.py", "--model", "tiny", "--rows", "1", "--samples",
         "16000", "--threads", "1", "--repeat", "3", *arguments, "--json", tmp_path / "s.json"],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    found = json.loads((tmp_path / "s.json").read_text())
    good, late, dies, empty = found["engines"]
    assert len(good["seconds"]) == 3
    assert good["error"] is None
    assert good["share_of_matrix_rate"] > 0
    if how == "together":  # one life: the third call fails, after a step that warmed up
        assert late["error"] == "ValueError: late"
        assert len(late["seconds"]) == 1
    assert "killed" in dies["error"]
    assert "must define make_model" in empty["error"]
    assert markdown(found) in done.stdout

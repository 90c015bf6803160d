"""The console script: its overview, its commands' help, and how a command line is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from w2v2dist import __version__
from w2v2dist.cli import COMMANDS, EXIT_BROKEN_PIPE, FAMILIES, MODULES, main, parse
from w2v2dist.config import ConfigError
from w2v2dist.tasks.train import read_config

TINY = str(Path(__file__).parents[2] / "configs/tiny_pretrain.yaml")


def printed(argv: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    """What a command prints that argparse itself ends with `status`."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == status
    shown = capsys.readouterr()
    return shown.err if status else shown.out


def test_overview_fits_on_a_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(["--help"], capsys).splitlines()
    assert len(lines) < 24  # one is left for the prompt
    assert max(map(len, lines)) <= 80
    words = [line.split() for line in lines]
    for family, summary in FAMILIES.items():
        names = ", ".join(name.split()[1] for name in COMMANDS[family])
        assert [family, *f"{names}: {summary}".split()] in words
    for group, commands in COMMANDS.items():
        if group in FAMILIES:
            continue
        for number, (name, (_, summary)) in enumerate(commands.items()):
            assert [*[group] * (number == 0), *name.split(), *summary.split()] in words


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_lists_its_commands(
    family: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed([family, "--help"], capsys).splitlines()
    assert max(map(len, lines)) <= 80
    words = [line.split() for line in lines]
    for name, (_, summary) in COMMANDS[family].items():
        short = name.removeprefix(f"{family} ")
        first = name == next(iter(COMMANDS[family]))
        assert [*[family] * first, short, *summary.split()] in words
    for argv in ([family], [family, "nothing"]):
        assert "invalid choice" in printed(argv, capsys, 2)


def test_overview_and_version_import_nothing_heavy() -> None:
    code = "import sys\nfrom w2v2dist.cli import main\ntry: main([sys.argv[1]])\n"
    code += "except SystemExit: print({'torch', 'numpy', 'yaml', 'rich'} & set(sys.modules))"
    for option, first in (("--help", "usage: w2v2dist COMMAND"), ("--version", __version__)):
        command = [sys.executable, "-c", code, option]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert out.startswith(first)
        assert out.endswith("set()\n")


@pytest.mark.parametrize("name", MODULES)
def test_each_command_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed([*name.split(), "--help"], capsys)
    assert shown.startswith(f"usage: w2v2dist {name} [-h]")
    assert len(shown.split("\n\n")[1]) > 40, "it says what the command does"
    assert f" {name} " in shown.split("\nexample:\n", 1)[1].splitlines()[0]


@pytest.mark.parametrize(
    "argv",
    [
        "batches a.yaml seed=1 loop.max_steps=2 --step 3",
        "batches --step 3 a.yaml seed=1 loop.max_steps=2",
        "batches a.yaml --step 3 seed=1 loop.max_steps=2",
        "batches a.yaml seed=1 --step 3 loop.max_steps=2",
    ],
)
def test_overrides_stand_anywhere(argv: str) -> None:
    args: Any = parse(argv.split())[1]
    assert (args.config, args.step, args.slot) == ("a.yaml", 3, None)
    assert args.overrides == ["seed=1", "loop.max_steps=2"]


def test_what_launchers_and_shells_make_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's --local_rank; text that YAML would read as a number; variables in paths."""
    args: Any = parse(["train", "--local_rank=3", "a.yaml", "seed=2"])[1]
    assert (args.config, args.overrides) == ("a.yaml", ["seed=2"])
    # `deepspeed --module w2v2dist.cli train a.yaml` puts it before the command
    assert parse(["--local_rank=3", "train", "a.yaml"])[1].config == "a.yaml"
    monkeypatch.setenv("SCRATCH_HERE", "/scratch")
    overrides = ["run_dir=2026_11_21", "data.train=$SCRATCH_HERE/a b,@x", "seed=0010"]
    config = read_config(TINY, overrides)
    assert (config.run_dir, config.data.train) == ("2026_11_21", "/scratch/a b,@x")
    assert config.seed == 10
    with pytest.raises(ConfigError, match=r"run_dir is '\$NOT_SET/x', but the environment has no"):
        read_config(TINY, ["run_dir=$NOT_SET/x"])
    with pytest.raises(ConfigError, match="task is 'dance' but must be one of pretrain, finetune"):
        read_config(TINY, ["task=dance"])
    sweep = str(Path(TINY).parent / "unsupervised/sweep_v1.yaml")
    with pytest.raises(ConfigError, match=r"is a sweep, whose trainings are of v1.yaml: give that"):
        read_config(sweep, [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        (
            "trian a.yaml",
            "invalid choice: 'trian' (choose from 'alphabet', 'import', 'paper', 'lm text'",
        ),
        ("train", "the following arguments are required: config"),
        (
            "train a.yaml --max-steps 3",
            "train: error: unrecognized arguments: --max-steps",
        ),
        ("batches a.yaml", "the following arguments are required: --step"),
        ("status a b", "w2v2dist status: error: unrecognized arguments: b"),
        ("export a --format onnx --output b", "argument --format: invalid choice: 'onnx'"),
    ],
)
def test_mistakes(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in printed(argv.split(), capsys, status=2)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`w2v2dist status RUN | head -1`: quiet, with the status that a shell knows."""
    (tmp_path / "config.yaml").write_text("loop: {max_steps: 3}\n")
    command = [sys.executable, "-m", "w2v2dist.cli", "status", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=250)[1] == b""
    assert process.returncode == EXIT_BROKEN_PIPE

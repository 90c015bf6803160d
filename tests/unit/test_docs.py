"""README and docs: every command shown is one that the code takes, every key and file exists, and
the tables of keys are the dataclasses'."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import submit
from shards import build, verify
from w2v2dist.cli import MODULES, parse
from w2v2dist.config import from_dict, read_yaml
from w2v2dist.jobs.cluster import ClusterConfig
from w2v2dist.jobs.sweep import read_sweep
from w2v2dist.recipes.recipe import is_recipe, read_recipe
from w2v2dist.tasks.finetune import FinetuneConfig
from w2v2dist.tasks.language_model import LanguageModelingConfig
from w2v2dist.tasks.pretrain import PretrainConfig
from w2v2dist.tasks.train import read_config
from w2v2dist.unsupervised.config import UnsupervisedConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("", "bash", "sh", "console")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
# Units that names say, and the word that stands for each in the tables of keys
UNITS = {"_s": "seconds", "_every": "steps", "_steps": "steps", "min_samples": "samples"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where commands are shown to run."""
    monkeypatch.chdir(ROOT)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in one of the languages, without the indent of the fence."""
    fences = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
    return [re.sub(f"^{i}", "", body, flags=re.M) for i, name, body in fences if name in languages]


def commands(text: str) -> list[str]:
    """Every command of the shell blocks: lines, joined where one is continued."""
    lines = "".join(blocks(text, *SHELL)).replace("\\\n", " ").splitlines()
    return [command.strip() for line in lines if line.strip() for command in line.split("&&")]


def shown(pages: list[Path]) -> Iterator[Any]:
    for page in pages:
        for command in commands(page.read_text()):
            yield pytest.param(command, id=f"{page.name}: {command}")


def check(words: list[str]) -> None:
    """Raise, by whatever the real parser or a file that is missing raises, or end the process as
    argparse does."""
    while "=" in words[0]:  # VARIABLE=value before a command
        words = words[1:]
    match words:
        case ["source", ".venv/bin/activate"]:
            pass
        case ["make", *targets]:
            assert {t for t in targets if "=" not in t} <= {*TARGETS}, "no such target"
        case ["w2v2dist", *arguments]:
            check_w2v2dist(arguments)
        case ["torchrun", "--nproc-per-node", _, "-m", "w2v2dist.cli", *arguments]:
            check_w2v2dist(arguments)
        case ["sbatch", *options, "--wrap", command]:
            assert all(option.startswith("--") for option in options[::2])
            check(shlex.split(command))
        case ["tensorboard", "--logdir", _] | ["tail", "-f", _] | ["squeue", "--me"]:
            pass
        case ["srun", "--nodes", "1", "--ntasks", _, "--gpus-per-node", _, "w2v2dist", *arguments]:
            check_w2v2dist(arguments)
        case ["deepspeed", "--num_gpus", _, "--module", "w2v2dist.cli", *arguments]:
            check_w2v2dist(arguments)
        case ["sbatch", *_]:
            at = words.index("launch/train.sbatch")
            assert all(option.startswith("--") for option in words[1:at:2])
            check_w2v2dist(["train", *words[at + 1 :]])
        case ["python", "launch/submit.py", *arguments]:
            args = submit.parse_args(arguments)
            read = read_sweep if args.sweep else read_config
            read = read_recipe if is_recipe(Path(args.config)) else read
            read(args.config, args.overrides)
            if args.cluster:
                from_dict(ClusterConfig, read_yaml(args.cluster))
        case ["python", "shards/build.py", *arguments]:
            build.parse_args(arguments)
        case ["python", "shards/verify.py", *arguments]:
            verify.parse_args(arguments)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"{module} does not exist"
        case ["python", script, *arguments] if script.startswith("benchmarks/"):
            source = Path(script).read_text()
            assert all(f'"{a}"' in source for a in arguments if a.startswith("--"))
        case _:
            raise AssertionError(f"no form of command that this test knows: {shlex.join(words)}")


def check_w2v2dist(arguments: list[str]) -> None:
    args = parse(arguments)[1]
    if hasattr(args, "recipe"):
        if args.recipe is not None and args.recipe.suffix == ".yaml":
            read_recipe(args.recipe, args.overrides)
    elif hasattr(args, "overrides"):
        read_config(args.config, args.overrides)


@pytest.mark.parametrize("command", shown(PAGES))
def test_shown_commands_are_taken(command: str) -> None:
    check(shlex.split(command, comments=True))


def help_texts() -> Iterator[Any]:
    for name, module in MODULES.items():
        run = importlib.import_module(f"w2v2dist.{module}").run
        yield pytest.param(run.__doc__.replace("\\\n", " "), id=name)
    yield pytest.param(submit.EPILOG, id="submit")
    yield pytest.param(build.__doc__, id="build")
    yield pytest.param(verify.__doc__, id="verify")
    sbatch = (ROOT / "launch/train.sbatch").read_text()
    yield pytest.param(sbatch.replace("\n#", "\n"), id="train.sbatch")


@pytest.mark.parametrize("text", help_texts())
def test_examples_of_help_are_taken(text: str) -> None:
    examples = re.findall(r"^ *((?:python|torchrun|sbatch|w2v2dist) .*)", text, re.M)
    assert examples
    for command in examples:
        check(shlex.split(command, comments=True))


@pytest.mark.parametrize(
    "command",
    [
        "w2v2dist trian configs/base_ls960.yaml",
        "w2v2dist train configs/base_ls961.yaml",
        "w2v2dist train configs/base_ls960.yaml loop.max_step=3",
        "w2v2dist evaluate runs/a --beam 3",
        "make tests",
        "sbatch launch/pretrain.sbatch configs/base_ls960.yaml",
        "python launch/submit.py --node 8-4-2 --cluster nowhere.yaml configs/base_ls960.yaml",
        "python shards/build.py --input a",
        "python -m w2v2dist.nowhere",
        'sbatch --mem 64G --wrap "python shards/build.py --input a"',
        "deepspeed --num_gpus 8 --module w2v2dist.cli train configs/base_ls961.yaml",
        "python benchmarks/elastic.py --nothing 3",
        "pip install w2v2dist",
    ],
)
def test_the_check_finds_mistakes(command: str) -> None:
    with pytest.raises((AssertionError, ValueError, OSError, SystemExit)):
        check(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_of_code(page: Path, tmp_path: Path) -> None:
    for code in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(alias.name) for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
    for text in blocks(page.read_text(), "yaml"):  # as if it lay in configs/
        values = yaml.safe_load(text)
        if "base" not in values:
            path = tmp_path / "profile.yaml"
            path.write_text(text)
            from_dict(ClusterConfig, read_yaml(path))
            continue
        path = tmp_path / "shown.yaml"
        path.write_text(json.dumps({**values, "base": str(ROOT / "configs" / values["base"])}))
        read_config(str(path), [])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_pages_name_exists(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [x for x in links if ":" not in x and not (page.parent / x).exists()] == []
    spans = re.findall(r"`([^`\n]+)`", "".join(re.split(r"^ *```.*?```$", text, flags=re.M | re.S)))
    assert [s for s in spans if s.startswith("make ") and s.split()[1] not in TARGETS] == []
    words = [s.split()[1:3] for s in spans if s.startswith("w2v2dist ")]
    assert [w for w in words if not {w[0], " ".join(w)} & {*MODULES} and w[0][0] != "-"] == []
    files = (
        r"(?:python |sbatch )?((?:launch|shards|configs|docs|benchmarks|tests|w2v2dist)/[^ *=]*)"
    )
    named = [m[1] for s in spans if "*" not in s and (m := re.match(files, s))]
    assert [name for name in named if not (ROOT / name).exists()] == []
    sections = {key.partition(".")[0] for key in facts() if "." in key}
    keys = [re.match(rf"(?:{'|'.join(sections)})\.[a-z_.]+", s) for s in spans]
    known = {*facts(), *(key.rpartition(".")[0] for key in facts())}
    assert [m[0] for m in keys if m and m[0] not in known] == []


def test_readme_is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 100


def test_commands_page_has_every_command() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    named = re.findall(r"^\| `w2v2dist ([a-z]+(?: [a-z]+)?)", page, re.M)
    assert named == list(MODULES)


KINDS: dict[str, list[Any]] = {
    "speech": [PretrainConfig(run_dir=""), FinetuneConfig(run_dir="")],
    "texts": [LanguageModelingConfig(run_dir="")],
    "unlabelled": [UnsupervisedConfig(run_dir="")],
}


def facts() -> dict[str, tuple[str, bool]]:
    """Dotted key -> its default as it is shown, and whether it may change when a run is resumed."""
    speech, *others = (facts_of(kind) for kind in KINDS)
    for other in others:
        assert all(speech[key][1] == other[key][1] for key in speech.keys() & other.keys())
    return {**others[1], **others[0], **speech}


def facts_of(kind: str) -> dict[str, tuple[str, bool]]:
    """The same of the trainings on speech, on texts, or on both without labels."""
    return {key: fact for config in KINDS[kind] for key, fact in _facts(config, "", False)}


def _facts(config: Any, prefix: str, may: bool) -> Iterator[tuple[str, tuple[str, bool]]]:
    for field in dataclasses.fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        changes = may or field.metadata.get("may_change", False)
        if dataclasses.is_dataclass(value):
            yield from _facts(value, f"{key}.", changes)
        else:
            text = f"`{json.dumps(value)}`".replace('"', "")
            yield key, ("(needed)" if key in ("task", "run_dir") else text, changes)


def test_tables_of_keys_are_the_dataclasses() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    speech, texts, unlabelled = re.split("## (?:A language model|Without labels)\n", text)
    common = facts_of("speech")
    expected = {speech: common}
    # What all trainings have stands with those on speech
    for part, kind in ((texts, "texts"), (unlabelled, "unlabelled")):
        expected[part] = {k: v for k, v in facts_of(kind).items() if common.get(k) != v}
    for part, known in expected.items():
        rows = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| (.*) \| (yes)? ?\|$", part, re.M)
        documented = {key: (default, bool(may)) for key, default, _, may in rows}
        assert len(documented) == len(rows), "a key stands there twice"
        assert documented == known
        for key, _, meaning, _ in rows:
            unit = next((unit for end, unit in UNITS.items() if key.endswith(end)), "")
            assert unit in meaning, f"{key} is in {unit}"


def test_cluster_page_has_every_key_of_a_profile() -> None:
    page = (ROOT / "docs/cluster.md").read_text().split("## 2. The profile")[1].split("\n## ")[0]
    shown = re.findall(r"^\| `([a-z_]+)` \| `(.+?)` \|", page, re.M)
    config = ClusterConfig()
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    assert dict(shown) == {k: json.dumps(v).strip('"') for k, v in values.items()}
    assert len(shown) == len(values), "a key stands there twice"


@pytest.mark.parametrize("page", ["cluster", "first_transcript"])
def test_plans_are_those_that_are_printed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    (command,) = [c for c in commands(text) if "--dry-run" in c]
    (block,) = [b for b in blocks(text, "text") if "PREDICTED" in b]
    plan = block.split("\n\n")[0].splitlines()
    assert {"memory per GPU", "step time"} <= {line[:16].strip() for line in plan}
    assert submit.main(shlex.split(command)[2:]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in plan if line not in printed] == []


def test_resume_page_lists_the_keys_that_may_change() -> None:
    text = (ROOT / "docs/resume.md").read_text()
    section = text.split("## Keys that may change", 1)[1].split("\n\n")[1]
    listed = set(re.findall(r"`([a-z_.*]+)`", section))
    expected = {
        re.sub(r"^(alarms|probe)\..*", r"\1.*", k) for k, (_, may) in facts().items() if may
    }
    assert listed == expected

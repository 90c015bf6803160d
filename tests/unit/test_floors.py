"""A module imports only from the floors below its own (CONTRIBUTING.md): read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the ground up. Modules of one line do not import each other; those inside one folder may.
FLOORS = """
config schedules logging keyed
distributed preemption watchdog
model data decode metrics interop
engine
checkpoint run_folder
alarms
loop
pretrain finetune language_model unsupervised report paper status
evaluate export plan
cli
cluster local
launch shards
"""
FLOOR = {name: i for i, line in enumerate(FLOORS.split("\n")) for name in line.split()}
# Converting for other libraries needs the model and its alphabet, which stand beside it
ALLOWED = {("interop", "model"), ("interop", "data")}
ONLY_IN = {"deepspeed": {"engine", "checkpoint"}, "submitit": {"cluster"}}
SOURCES = sorted(p for d in ("w2v2dist", "launch", "shards") for p in (ROOT / d).rglob("*.py"))


def part(path: Path) -> str:
    """A file's name in FLOORS: its module or folder inside the package, or launch or shards."""
    first, second = path.relative_to(ROOT).parts[:2]
    return first if first != "w2v2dist" else second.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute dotted module that a file imports anywhere, late imports included."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            # Of `from w2v2dist import loop` the last word is a module, else it is only a name
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def target(module: str) -> str | None:
    """The part that an imported module belongs to; None where it is not of this project."""
    names = module.split(".")
    if names[0] in ("launch", "shards"):
        return names[0]
    if names[0] != "w2v2dist" or len(names) == 1 or names[1] == "__version__":
        return None
    return names[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = part(path)
    if here == "__init__":
        assert not list(imported(path)) or {m for m, _ in imported(path)} <= {
            "__future__.annotations"
        }
        return
    assert here in FLOOR, f"{path} has no floor: add {here} to FLOORS and CONTRIBUTING.md"
    climbs = [
        f"{path.name}:{line} imports {module}"
        for module, line in imported(path)
        if (there := target(module)) is not None
        and there != here
        and (here, there) not in ALLOWED
        and FLOOR.get(there, len(FLOOR)) >= FLOOR[here]
    ]
    assert climbs == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_dependencies_have_one_door(path: Path) -> None:
    strays = [
        f"{path.name}:{line} imports {module}"
        for module, line in imported(path)
        if part(path) not in ONLY_IN.get(module.split(".")[0], {part(path)})
    ]
    assert strays == []


def test_the_reader_of_imports_sees_all_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "w2v2dist" / "data" / "order.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import deepspeed.comm as dist\nfrom w2v2dist import loop\nfrom ..engine import Engine\n"
        "def f():\n    from w2v2dist.cli import main\n"
    )
    modules = [module for module, _ in imported(path)]
    assert modules == [
        "deepspeed.comm",
        "w2v2dist.training.loop",
        "w2v2dist.training.engine.Engine",
        "w2v2dist.cli.main",
    ]
    assert [target(m) for m in modules] == [None, "loop", "engine", "cli"]

"""The house (CONTRIBUTING.md): a module imports only from the floors below its own, and what is
heavy has one door. Read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the ground up. Rooms of one line do not import each other.
FLOORS = """
config runtime model
data checkpoint
interop training lm
decode
unsupervised
tasks
recipes
reporting jobs
cli
launch shards
"""
# The same for the files of one room; those of one line do not import each other
TRAINING = """
compiled
schedules lock attempts exchange fragments agreed
engine
plain_engine
run_folder
engine_state rollbacks task
checkpointer metrics bad_samples
validation probing alarms
config
loop
"""
ENGINE = {"training/engine.py", "training/engine_state.py", "training/fragments.py"}
ONLY_IN = {"deepspeed": ENGINE, "submitit": {"jobs/cluster.py"}}
SOURCES = sorted(p for d in ("w2v2dist", "launch", "shards") for p in (ROOT / d).rglob("*.py"))
PACKAGE = ROOT / "w2v2dist"
ids = lambda p: str(p.relative_to(ROOT))  # noqa: E731


def levels(floors: str) -> dict[str, int]:
    return {name: i for i, line in enumerate(floors.split("\n")) for name in line.split()}


def room(path: Path) -> str:
    """A file's name in FLOORS: its room or module inside the package, or launch or shards."""
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
            # Of `from w2v2dist import data` the last word is a module, else it is only a name
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def target(module: str) -> str | None:
    """The room that an imported module belongs to; None where it is not of this project."""
    names = module.split(".")
    if names[0] in ("launch", "shards"):
        return names[0]
    if names[0] != "w2v2dist" or len(names) == 1 or names[1] == "__version__":
        return None
    return names[1]


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_go_down(path: Path) -> None:
    here, floor = room(path), levels(FLOORS)
    if here == "__init__":
        assert {m for m, _ in imported(path)} <= {"__future__.annotations"}
        return
    assert here in floor, f"{path} has no floor: add {here} to FLOORS and CONTRIBUTING.md"
    climbs = [
        f"{path.name}:{line} imports {module}"
        for module, line in imported(path)
        if (there := target(module)) is not None
        and there != here
        and floor.get(there, len(floor)) >= floor[here]
    ]
    assert climbs == []


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) == "training"], ids=ids)
def test_imports_inside_training_go_down(path: Path) -> None:
    floor, prefix = levels(TRAINING), "w2v2dist.training."
    if path.stem == "__init__":
        assert not list(imported(path))
        return
    inside = [m.removeprefix(prefix) for m, _ in imported(path) if m.startswith(prefix)]
    assert {m for m in inside if floor[m.split(".")[0]] >= floor[path.stem]} == set()
    if path.stem == "loop":  # it knows sources, not what they read
        assert not [m for m, _ in imported(path) if m.startswith("w2v2dist.data")]


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_heavy_dependencies_have_one_door(path: Path) -> None:
    here = path.relative_to(PACKAGE).as_posix() if PACKAGE in path.parents else ids(path)
    strays = [
        f"{path.name}:{line} imports {module}"
        for module, line in imported(path)
        if here not in ONLY_IN.get(module.split(".")[0], {here})
    ]
    assert strays == []


def test_no_file_or_function_has_outgrown_its_reader() -> None:
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        long += [ids(path)] * (len(text.splitlines()) > 350)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:  # type: ignore[operator]
                long.append(f"{ids(path)}: {node.name}")
    assert long == []
    others = ("__init__.py", "__pycache__", "paper.yaml")
    rooms = [p for p in PACKAGE.iterdir() if p.name not in others]
    assert len(rooms) <= 15


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
        "w2v2dist.loop",
        "w2v2dist.engine.Engine",
        "w2v2dist.cli.main",
    ]
    assert [target(m) for m in modules] == [None, "loop", "engine", "cli"]

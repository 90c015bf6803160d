"""docs/errors.md: every message of ours that it quotes is one that the sources can print, and what
it says of other programs is not ours."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/errors.md"
GAP = "…"  # what differs: on the page, and where a source puts a value
END = "\0"
ROOMS = ("w2v2dist", "shards", "launch")
SHELL = ("w2v2dist/jobs/job.sh", "launch/train.sbatch", "Makefile")
LEAST_LETTERS = 8  # of a quotation, or it would be found anywhere


def text_of(node: ast.AST) -> str | None:
    """A string of a source with GAP in the place of each value; None: no string."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) or GAP for part in parts)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return f"{text_of(left) or GAP}{text_of(right) or GAP}"
    return None


def strings(source: str) -> Iterator[str]:
    """All strings of a Python source but its docstrings."""
    tree = ast.parse(source)
    said = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    yield from (t for n in ast.walk(tree) if id(n) not in said and (t := text_of(n)))


def shell_strings(source: str) -> Iterator[str]:
    """The lines of a shell script, with GAP for what it replaces."""
    for line in source.replace('" \\\n', '"\n').split("\n"):
        yield re.sub(r"\$\([^()]*\)|\$\{[^}]*\}|\$\w+", GAP, line)


def printable() -> str:
    """What the project can print, an END between strings."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = [text for path in files for text in strings(path.read_text(encoding="utf-8"))]
    found += [text for name in SHELL for text in shell_strings((ROOT / name).read_text())]
    return END.join(found)


def is_said(message: str, sources: str) -> bool:
    """Whether a quotation is part of one of the strings; a GAP stands for anything in it."""
    parts = message.strip(GAP).split(GAP)
    return bool(re.search(f"[^{END}]*?".join(map(re.escape, parts)), sources))


def quotations(page: str) -> Iterator[tuple[str, bool]]:
    """(message, whether it is ours) of the first cells: a span before "(program)" is the program's,
    and so are those that a comma joins to it."""
    for cell in re.findall(r"^\| (?!message|-)((?:[^|\\]|\\.)+?) \|", page, re.M):
        for group in re.findall(r"(?:`[^`]+`(?:, )?)+(?: ?\([^`()]+\))?", cell.replace(r"\|", "|")):
            theirs = group.endswith(")")
            yield from ((message, not theirs) for message in re.findall(r"`([^`]+)`", group))


SOURCES = printable()
QUOTED = [*quotations(PAGE.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("message", [message for message, ours in QUOTED if ours])
def test_our_messages_are_printed(message: str) -> None:
    assert sum(map(str.isalpha, message)) >= LEAST_LETTERS, "too short to be found"
    assert is_said(message, SOURCES)


@pytest.mark.parametrize("message", [message for message, ours in QUOTED if not ours])
def test_messages_of_others_are_not_ours(message: str) -> None:
    assert not is_said(message, SOURCES)


def test_the_page_has_the_messages_that_users_meet() -> None:
    assert sum(ours for _, ours in QUOTED) >= 100
    assert sum(not ours for _, ours in QUOTED) >= 25
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows), "message, cause, remedy"
    assert len({message for message, _ in QUOTED}) == len(QUOTED), "a message stands there twice"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("data.train is … but", True),
        ("… is … but must be", True),
        ("must be … or …", True),
        ("data.train was … but", False),
        ("but must be one", False),
        ("a docstring of the module", False),
    ],
)
def test_the_check_finds_a_reworded_message(message: str, said: bool) -> None:
    source = (
        '"""a docstring of the module"""\nraise E(f"data.train is {x} but " f"must be {y} or 3")'
    )
    assert is_said(message, END.join(strings(source))) is said


def test_quotations_of_a_cell() -> None:
    page = "| message | cause |\n|-|-|\n| `a …`, `b` (torch) with `our own`, `c` | `d` |\n"
    assert [*quotations(page)] == [("a …", False), ("b", False), ("our own", True), ("c", True)]

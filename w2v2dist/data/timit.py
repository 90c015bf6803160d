"""TIMIT's sets of speakers, and its phones in three sizes (timit.yaml)."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from w2v2dist.config import read_yaml

SIZES = (61, 48, 39)


@cache
def speakers(split: str) -> tuple[str, ...]:
    """The speakers of "train", "dev" or "test", in lower case. Raises KeyError for another."""
    return tuple(_content()["speakers"][split].split())


def splits() -> tuple[str, ...]:
    """The names that `speakers` takes."""
    return tuple(_content()["speakers"])


def num_sentences() -> int:
    """That each speaker reads beside the two that all of them read (SA1, SA2)."""
    return int(_content()["sentences"])


@cache
def fold(size: int) -> dict[str, str | None]:
    """Every symbol of TIMIT's 61, and of every smaller set down to `size` (61, 48 or 39), to that
    of the set of `size`; None where it is deleted, as q is from both smaller ones."""
    column = SIZES.index(size)
    out: dict[str, str | None] = {}
    for row in _content()["phones"].split(","):
        names = [*row.split(), None, None][: len(SIZES)]  # of q there is one
        for name in names[: column + 1]:
            if name is not None:
                out[name] = names[column]
    return out


@cache
def _content() -> dict[str, Any]:
    return read_yaml(Path(str(resources.files("w2v2dist.data") / "timit.yaml")))

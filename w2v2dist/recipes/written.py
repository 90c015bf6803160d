"""A recipe as it is written: the keys of its file, and what of the command line wins over them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from w2v2dist.config import ConfigError, merge


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFile:
    """An entry under `stages`: one stage, or one for each combination of `each`."""

    each: dict[str, Any] = field(default_factory=dict)  # variable -> values, or a list's name
    train: str | None = None  # the YAML file of a training …
    set: dict[str, Any] = field(default_factory=dict)  # … and what wins over it
    run: Any = None  # any other command of this project, or a list of them
    needs: tuple[str, ...] = ()  # beside those that it names with @; evaluate_* is allowed
    nodes: str = "1"  # of a training: N or MIN-MAX
    resources: dict[str, Any] = field(default_factory=dict)  # of a command: options of sbatch
    hours: Any = None  # of audio that the shards will have, for the estimates
    cell: dict[str, Any] | None = None  # row, split, decoder, seed: its place in the tables


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeFile:
    """A recipe as it is written."""

    recipe: str  # its name
    folder: str | None = None  # null: runs/recipes/NAME
    corpora: dict[str, Any] = field(default_factory=dict)  # name -> folder or file, null: none
    let: dict[str, Any] = field(default_factory=dict)  # values and lists that stages use
    given: dict[str, Any] = field(default_factory=dict)  # stage -> PATH in place of its result
    resources: dict[str, Any] = field(default_factory=dict)  # kind of a stage -> its `resources`
    stages: dict[str, StageFile]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*\w", self.recipe):
            raise ConfigError(
                f"recipe is {self.recipe!r} but must be a name of letters, digits, _, - and ."
            )


def overridden(written: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A recipe under the command line. Raises ConfigError for a name that nothing uses."""
    out = merge(written, over)
    for section in ("corpora", "let"):
        known, names = written.get(section) or {}, over.get(section)
        for name in names if isinstance(names, dict) and isinstance(known, dict) else ():
            used = rf"\b{'corpora.' * (section == 'corpora')}{re.escape(name)}\b"
            if name not in known and not re.search(used, repr(out.get("stages"))):
                raise ConfigError(f"{section}.{name}: the recipe has none; it has {some(known)}")
    return out


def some(names: Mapping[str, Any], count: int = 12) -> str:
    """The first of them, for a message."""
    listed = list(names)
    return ", ".join(listed[:count]) + (", …" if len(listed) > count else "")

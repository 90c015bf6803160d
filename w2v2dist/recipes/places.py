"""Where everything of a recipe is: paths in place of its @references and {corpora}."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v2dist.recipes.expand import REFERENCE, VALUE, spelled
from w2v2dist.recipes.recipe import Argv


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything of a recipe is."""

    folder: Path
    corpora: Mapping[str, str | None]
    given: Mapping[str, str]

    def of(self, name: str) -> str:
        """The path that stands for @NAME."""
        return self.given.get(name) or str(self.folder / name)

    def put(self, text: str) -> str:
        """A word with paths in place of references, corpora and the recipe's folder."""
        text = REFERENCE.sub(lambda m: self.of(m[1]), text)
        return VALUE.sub(lambda m: self._value(m[1], m[0]), text)

    def _value(self, name: str, text: str) -> str:
        if name == "folder":
            return str(self.folder)
        return str(self.corpora[name.removeprefix("corpora.")]) if "." in name else text

    def command(self, command: Argv) -> Argv:
        """A command; a corpus that is null takes the option before it with it."""
        out: list[str] = []
        for word in command:
            m = VALUE.fullmatch(word)
            if m and self.corpora.get(m[1].removeprefix("corpora."), "") is None:
                if out and out[-1].startswith("--"):
                    out.pop()
            else:
                out.append(self.put(word))
        return tuple(out)


def path_of(value: Any) -> str | None:
    """A path as it was written, with ~ and $NAME in it put in."""
    return None if value is None else os.path.expanduser(os.path.expandvars(spelled(value)))


def lasting_path(value: Any) -> str | None:
    """A path that is the same from every folder, where there is something; an id of a hub stays."""
    path = path_of(value)
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path

"""A recipe: stages that need each other, each made by commands of this project."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError, read_yaml

SPLITS = (
    *("dev", "dev_clean", "dev_other", "test_clean", "test_other"),  # dev: both together
    *("timit_dev", "timit_test"),
)
DECODERS = ("greedy", "ngram", "transformer")
TRAININGS = ("pretrain", "finetune", "language_model")
EVALUATION = "evaluation.json"
# The files that say that a stage's commands have made everything, by kind
OUTPUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRAININGS, ("config.yaml", "checkpoints/latest")),
    "shards": ("index.json",),
    "speech": ("SOURCE.txt",),
    "text": ("text.txt", "dict.txt", "lexicon.txt"),
    "ngram": (),
    "tune": (EVALUATION, "weights.json"),
    "evaluate": (EVALUATION,),
    "table": (),
}
DONE, RESOLVED, IDENTITY, OUT = "done.json", "recipe.yaml", "recipe.json", "{out}"
Argv = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The place in the paper's tables that an evaluation fills."""

    row: str  # as in the tables: "10 min BASE LS-960"
    split: str
    decoder: str
    seed: int

    def __post_init__(self) -> None:
        for name, value, known in (
            ("split", self.split, SPLITS),
            ("decoder", self.decoder, DECODERS),
        ):
            if value not in known:
                raise ConfigError(f"cell.{name} is {value!r} but must be one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage: its commands fill its folder. Of a training there is one command, which continues
    it when it is given again."""

    name: str
    kind: str  # shards | speech | pretrain | finetune | language_model | text | ngram | tune | …
    group: str  # the entry of the recipe's `stages` that it was made of
    folder: Path
    needs: tuple[str, ...] = ()
    templates: tuple[Argv, ...] = ()  # {out}: the folder
    config: str | None = None  # of a training: its file and overrides, without run_dir
    overrides: tuple[str, ...] = ()
    nodes: str = "1"  # of a training: "8" or "4-8"
    resources: Mapping[str, Any] = field(default_factory=dict)  # of any other: options of sbatch
    hours: float | None = None  # of audio, for the estimates
    reads: tuple[str, ...] = ()  # the corpora that it names
    what: Any = None  # it does: its settings, or its commands
    fingerprint: str = ""  # of that, and of all that it needs
    cell: Cell | None = None

    def __post_init__(self) -> None:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", self.nodes)
        if not match or not 1 <= int(match[1]) <= int(match[2] or match[1]):
            raise ConfigError(
                f"stages.{self.group}.nodes is {self.nodes!r} but must be N or MIN-MAX, 1 <= MIN "
                "<= MAX: for example 8 or 12-16"
            )

    @property
    def is_training(self) -> bool:
        """Whether it is a run with checkpoints."""
        return self.kind in TRAININGS

    @property
    def commands(self) -> tuple[Argv, ...]:
        """What a person would run, one after the other."""
        return self.argv(self.folder)

    def argv(self, out: Path) -> tuple[Argv, ...]:
        """The commands with another folder to fill."""
        return tuple(
            tuple(word.replace(OUT, str(out)) for word in template) for template in self.templates
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Files under its folder that are there when it is done."""
        named = re.findall(rf"{re.escape(OUT)}/([^\s,]+)", " ".join(map(" ".join, self.templates)))
        return (*OUTPUTS.get(self.kind, ()), *dict.fromkeys(named))

    def record(self) -> dict[str, Any]:
        """What done.json says; {} where there is none."""
        return read_json(self.folder / DONE)

    def done(self) -> bool:
        """Whether its commands ended with 0 as they are now, and what they made is there."""
        made = all((self.folder / name).exists() for name in self.outputs)
        return made and self.record().get("fingerprint") == self.fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The stages of one recipe, each after what it needs."""

    name: str
    folder: Path  # everything of the recipe lives there
    path: Path  # of the file
    stages: Mapping[str, Stage]
    corpora: Mapping[str, str | None]  # name -> folder or file
    given: Mapping[str, str]  # stage -> what is used in place of its result
    written: Mapping[str, Any]  # the file's values under those of the command line …
    overrides: tuple[str, ...] = ()  # … and these

    def dependents(self, names: set[str]) -> list[str]:
        """All stages that need one of these, directly or not, in order."""
        out: set[str] = set()
        for stage in self.stages.values():
            if not out.union(names).isdisjoint(stage.needs):
                out.add(stage.name)
        return [name for name in self.stages if name in out]


def is_recipe(path: Path) -> bool:
    """Whether a file, or a folder by its recipe.yaml, is a recipe. Raises ConfigError."""
    try:
        file = path / RESOLVED if path.is_dir() else path
        return file.is_file() and "recipe" in read_yaml(file)
    except OSError:  # not ours to read
        return False


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file, or of the folder that one has filled, under `key=value`s. Raises
    ConfigError, which names all mistakes."""
    from w2v2dist.recipes.build import build_recipe  # late: it needs the classes above

    return build_recipe(Path(path), overrides or [])


def read_started(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """As `read_recipe`, with the settings of the command that last started the recipe under
    `overrides`: of a folder its file has them, of a file the folder remembers them."""
    recipe = read_recipe(path, overrides)
    record = identity_of(recipe.folder)
    settings = record.get("settings", []) if record.get("recipe") == recipe.name else []
    if not settings or Path(path).is_dir():
        return recipe
    return read_recipe(path, [*settings, *(overrides or [])])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def digest_of(path: Path) -> str | None:
    """Tells whether a file is as its stage wrote it; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def identity_of(folder: Path) -> dict[str, Any]:
    """Which recipe filled a folder, with the command; {} where none has."""
    return read_json(folder / IDENTITY)


def command_of(recipe: Recipe) -> str:
    """The command that makes what is missing of a recipe: the one that started it, where it was
    given the same settings."""
    record, folder = identity_of(recipe.folder), recipe.path == recipe.folder / RESOLVED
    same = [] if folder else record.get("settings")
    if record.get("command") and [*recipe.overrides] == same:
        return str(record["command"])
    path = recipe.folder if folder else recipe.path
    return f"python launch/submit.py --recipe {shlex.join([str(path), *recipe.overrides])}"

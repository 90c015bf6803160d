"""Whether runs that learned apart read the same, which tells a language from noise."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError
from w2v2dist.decode.scoring import errors
from w2v2dist.unsupervised.feature_store import FeatureStore
from w2v2dist.unsupervised.selection import Candidate, phones_of
from w2v2dist.unsupervised.sweep_runs import SCORED_BY, Cell
from w2v2dist.unsupervised.trained import Trained, open_trained

NUM_COMPARED = 3  # converged runs whose hypotheses are compared
# What files that are damaged in ways that nobody foresaw raise
DAMAGED = (OSError, EOFError, RuntimeError, LookupError, TypeError, AttributeError, ValueError)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What runs read, compared."""

    rate: float | None = None  # phone errors against each other; None: fewer than two were read
    unread: dict[str, str] = field(default_factory=dict)  # run: why it could not be read
    twins: dict[str, str] = field(default_factory=dict)  # run: the one whose weights it has


def step_folder(cell: Cell, chosen: Candidate) -> Path:
    """Where a validation's checkpoint lies."""
    return cell.folder / "checkpoints" / f"step_{chosen.step:08d}"


def open_checkpoint(folder: Path) -> Trained:
    """The generator of a step folder. Raises ConfigError, which names the folder."""
    try:
        checkpoint.read_meta(folder)
        return open_trained(folder)
    except DAMAGED as error:
        said = str(error) if str(folder) in str(error) else f"{folder} is damaged ({error!r})"
        raise ConfigError(said) from None


def compare(cells: Sequence[Cell]) -> Agreement:
    """Phone errors of the best converged runs against each other, the mean over pairs. A training
    that stands there twice counts once, and one that cannot be read gives its place to the next."""
    good = converged(cells)
    if len(good) < 2 or {*SCORED_BY} & {*different(good)}:
        return Agreement()
    kept, _ = apart(good)
    unread, twins = dict[str, str](), dict[str, str]()
    read: list[tuple[Cell, Trained, FeatureStore, list[str]]] = []
    for cell in kept:
        if len(read) == NUM_COMPARED:
            break
        try:
            trained, store, rows = _read(cell)
            if read and store.fingerprint != read[0][2].fingerprint:
                raise ConfigError(
                    f"{trained.folder} was validated on {store.folder}, and {read[0][0].name} on "
                    f"other features, {read[0][2].folder}: select among the runs of one sweep"
                )
        except ConfigError as error:
            unread[cell.name] = str(error)
            continue
        if equal := [other.name for other, theirs, *_ in read if _are_equal(trained, theirs)]:
            twins[cell.name] = equal[0]
        else:
            read.append((cell, trained, store, rows))
    return Agreement(_mean_rate([rows for *_, rows in read]), unread, twins)


def converged(cells: Iterable[Cell]) -> list[Cell]:
    """Those that nothing speaks against, the best first."""
    return sorted((c for c in cells if c.candidates and not c.problem), key=score)


def apart(good: Sequence[Cell]) -> tuple[list[Cell], dict[str, str]]:
    """The first of each training, and which of the others are the same as which of these."""
    first: dict[str, Cell] = {}
    same = {}
    for cell in good:
        known = first.setdefault(cell.training or f"{len(first)} {cell.name}", cell)
        if known is not cell:
            same[cell.name] = known.name
    return [*first.values()], same


def score(cell: Cell) -> float:
    """What runs are ordered by."""
    return math.inf if cell.best is None else cell.best.weighted_lm_ppl


def different(cells: Sequence[Cell]) -> list[str]:
    """Which settings of what they are scored by are not the same in all."""
    return [key for key in cells[0].data if len({str(cell.data.get(key)) for cell in cells}) > 1]


def _read(cell: Cell) -> tuple[Trained, FeatureStore, list[str]]:
    """What a run's best checkpoint reads. Raises ConfigError, which names the file."""
    assert cell.best is not None
    trained = open_checkpoint(step_folder(cell, cell.best))
    valid = trained.config.data.valid
    if valid is None:
        raise ConfigError(f"{trained.folder} has no data.valid, which runs are compared on")
    try:
        store = FeatureStore(valid)
        read = trained.read(store)
    except DAMAGED as error:
        said = str(error) if valid in str(error) else f"{valid} cannot be read ({error!r})"
        raise ConfigError(said) from None
    silence = len(trained.symbols) - 1
    rows = (phones_of(row, silence) for row in read)
    return trained, store, [" ".join(trained.symbols[i] for i in row) for row in rows]


def _are_equal(one: Trained, other: Trained) -> bool:
    """Whether two generators have the same weights: no two trainings end so."""
    ours, theirs = one.generator.state_dict(), other.generator.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _mean_rate(read: Sequence[list[str]]) -> float | None:
    rates = []
    for i, ours in enumerate(read):
        for theirs in read[i + 1 :]:
            counted = errors(ours, theirs, "word")
            total = sum(e.num_units for e in counted)
            rates.append(sum(e.total for e in counted) / max(1, total))
    return sum(rates) / len(rates) if rates else None

"""What differs between trainings: the protocol that the loop and its parts know a task by."""

from collections.abc import Generator, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from w2v2dist.training.engine import OptimizerConfig

Record = dict[str, Any]
Batches = Generator[Any, None, None]  # of data.batch.Batch, each task's own kind


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters with an optimizer of their own: a module, which gets an engine."""

    module: nn.Module
    optimizer: OptimizerConfig


@dataclass(frozen=True, slots=True)
class Update:
    """What the update of a step moves (a name of `Task.groups`), and at which learning rate."""

    group: str
    lr: float


@dataclass(frozen=True, slots=True)
class Reading:
    """A watched value beside its limit; `bad` where that is broken, and what helps then."""

    alarm: str
    value: float
    limit: float
    bad: bool
    remedy: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """An utterance of a validation set: what is said, and what the model reads."""

    key: str
    reference: str
    hypothesis: str
    errors: str  # for a person: "2 of 9 words"


class Source(Protocol):
    """Where the micro-batches of a training come from: a pure function of (step, slot, seed)."""

    @property
    def fingerprint(self) -> str:
        """Tells these data from others."""

    @property
    def validation(self) -> Mapping[str, Sized]:
        """The validation sets by the name that their metrics begin with."""

    def check(self) -> None:
        """Raise ValueError where the data are not there or damaged; may be slow."""

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of the data; said when the run starts."""

    def batches(self, steps: Iterable[int], slots: list[int | None], seed: int) -> Batches:
        """The `Batch` of each of these slots (None: an empty one), step after step."""

    def validation_batches(self, name: str, rank: int, world_size: int) -> Batches:
        """This rank's share of a validation set, the same number of batches for every rank."""


class Task(Protocol):
    """A training. Sums are added up over slots, steps and processes before `metrics`."""

    @property
    def groups(self) -> Mapping[str, Group]:
        """What is trained, by name; a single one is called ""."""

    @property
    def best_metric(self) -> str:
        """The validation metric that chooses the best checkpoint; lower is better."""

    @property
    def records(self) -> Mapping[str, Any]:
        """What its weights mean nothing without, by name, as JSON holds it: each is NAME.json in
        the run folder and part of every checkpoint's meta, and may not change."""

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of how it was made; said when the run starts."""

    def check(self, world_size: int) -> None:
        """Raise ConfigError where so many processes cannot train it."""

    def source(self) -> Source:
        """Open its data."""

    def update(self, step: int) -> Update:
        """Whose turn it is."""

    def losses(self, engine: Any, batch: Any, step: int, seed: int) -> dict[str, Tensor]:
        """Sums over the micro-batch (0-d tensors); `loss` is to be minimised, not yet divided.
        `engine` (plain_engine.AnyEngine) is the moved group's; in validation (`step` 0) the first
        group's."""

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Numbers to log from the sums."""

    def transcripts(self, count: int) -> list[Transcript]:
        """Of the last micro-batch of validation, `count` at most; [] where nothing is read."""

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """Scheduled values to log beside the learning rate."""

    def progress(self, amount: float) -> dict[str, float]:
        """A sum of `Batch.amount` in the unit that progress is logged in."""

    def readings(self, record: Record) -> list[Reading]:
        """What a record of metrics says about learning, besides that the loss is finite."""

"""What is evaluated: a model on shards, or what was kept of one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from w2v2dist.checkpoint import read_meta
from w2v2dist.config import ConfigError, from_dict
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.config import DataConfig
from w2v2dist.decode.decoders import DecodingConfig
from w2v2dist.decode.emissions import Emissions, is_kept, kept_emissions
from w2v2dist.decode.tune import NUM_TRIALS
from w2v2dist.interop.open import OpenedModel, open_model
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.files import unwritable


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What is evaluated, how, and where the results go."""

    model: str
    data: str | None = None  # shards; None: the run's data.valid
    output: str | None = None  # None: a folder of the run's evaluations/, named after all this
    checkpoint: str | None = None
    emissions: str | None = None  # where they are kept; None: beside the results
    trust_pickle: bool = False
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    tune: str | None = None  # shards that the weights are found on before
    num_trials: int = NUM_TRIALS

    def __post_init__(self) -> None:
        if self.tune is not None:
            self.decoding.check_tunable()
        if self.output and (why := unwritable(Path(self.output) / "evaluation.json")):
            raise ConfigError(f"--output: {why}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What is evaluated: a model, or what was kept of one."""

    source: str
    alphabet: Alphabet
    notes: tuple[str, ...]
    data: str  # to evaluate on
    emissions: Callable[[str, Path], Emissions]  # of shards, kept below a folder

    @classmethod
    def named(cls, settings: Evaluation, world: World) -> "Evaluated":
        """The one that the settings name. Raises ConfigError where its data are not known."""
        if is_kept(Path(settings.model)):
            return cls._kept(settings)
        opened = open_model(settings.model, settings.checkpoint, trust_pickle=settings.trust_pickle)
        config = data_config(opened)
        data = settings.data or config.valid
        if not data:
            raise ConfigError(
                f"{settings.model} has no validation set of its own: name shards with --data"
            )
        return cls(
            source=str(opened.source),
            alphabet=opened.recogniser()[1],
            notes=opened.notes,
            data=data,
            emissions=lambda shards, kept: kept_emissions(opened, config, shards, kept, world),
        )

    @classmethod
    def _kept(cls, settings: Evaluation) -> "Evaluated":
        first = Emissions(Path(settings.model))

        def emissions(name: str, kept: Path) -> Emissions:
            if not is_kept(Path(name)):
                raise ConfigError(
                    f"{settings.model} holds what a model made of certain shards, not the model: "
                    f"name other emissions instead of {name}, or the model"
                )
            found = Emissions(Path(name))
            if found.meta["model"] != first.meta["model"]:
                raise ConfigError(f"{name} and {settings.model} are of different models")
            return found

        return cls(
            source=str(first.meta["source"]),
            alphabet=first.alphabet,
            notes=(),
            data=settings.data or settings.model,
            emissions=emissions,
        )


def data_config(opened: OpenedModel) -> DataConfig:
    """The run's data settings, of another library's model the defaults."""
    if (opened.source / "meta.json").exists():
        return from_dict(DataConfig, read_meta(opened.source)["config"]["data"], "data.")
    return DataConfig(normalize=bool(opened.normalize))

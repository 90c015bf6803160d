"""A Transformer language model on texts: the next word or token after each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from w2v2dist.data.text_source import (
    TextBatch,
    TextDataConfig,
    TextFolders,
    TextSource,
    prepare_texts,
)
from w2v2dist.model.language_model import LanguageModelConfig, TransformerLanguageModel
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.keyed import keyed_seed
from w2v2dist.training.agreed import agreed
from w2v2dist.training.config import TrainingConfig
from w2v2dist.training.engine import Engine
from w2v2dist.training.schedules import learning_rate
from w2v2dist.training.task import Group, Reading, Record, Transcript, Update

ENCODED = "texts"  # of the run folder: the texts as ids


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelingConfig(TrainingConfig):
    """Everything about the training of a language model."""

    task: Literal["language_model"] = "language_model"
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    data: TextDataConfig = field(default_factory=TextDataConfig)


def agreed_texts(config: LanguageModelingConfig, world: World) -> TextFolders:
    """The encoded texts in the run folder, which rank 0 alone makes; collective. Raises ConfigError
    in all."""
    return agreed(lambda: encoded_texts(config), world)


def encoded_texts(config: LanguageModelingConfig) -> TextFolders:
    """The same in one process."""
    return prepare_texts(config.data, Path(config.run_dir) / ENCODED)


class LanguageModelTask:
    """The model, its texts, its loss and metrics."""

    best_metric = "valid/loss"

    def __init__(self, config: LanguageModelingConfig, folders: TextFolders) -> None:
        self.config, self._folders = config, folders
        vocabulary = folders.vocabulary()
        self.records = {"vocabulary": vocabulary.to_dict()}
        self.notes: Sequence[str] = [
            f"data.vocabulary={config.data.vocabulary}: {vocabulary} "
            f"(fingerprint {vocabulary.fingerprint})"
        ]
        torch.manual_seed(keyed_seed(config.seed, "init"))
        self.model = TransformerLanguageModel(config.model, len(vocabulary))
        self.groups = {"": Group(self.model, config.optimizer)}

    def check(self, world_size: int) -> None:
        """Nothing: any number of processes can train it."""

    def source(self) -> TextSource:
        """The sentences of data.train."""
        return TextSource(self.config.data, self.config.seed, self._folders)

    def update(self, step: int) -> Update:
        """All parameters, at the scheduled learning rate."""
        return Update("", learning_rate(self.config.schedule, step, self.config.loop.max_steps))

    def losses(self, engine: Engine, batch: TextBatch, step: int, seed: int) -> dict[str, Tensor]:
        """Negative log-likelihood (nats) summed over the words and ends of sentences."""
        loss = engine(batch.tokens, batch.targets).sum()
        return {"loss": loss, "num_tokens": torch.tensor(batch.num_targets, device=loss.device)}

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Nats and bits a token (an end of a sentence is one), and the perplexity."""
        loss = sums["loss"] / max(sums["num_tokens"], 1.0)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"loss": loss, "bits": loss / math.log(2), "perplexity": perplexity}

    def transcripts(self, count: int) -> list[Transcript]:
        """None: nothing is read."""
        return []

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """None beside the learning rate."""
        return {}

    def progress(self, amount: float) -> dict[str, float]:
        """Tokens, ends of sentences among them."""
        return {"tokens": amount}

    def readings(self, record: Record) -> list[Reading]:
        """None: a loss that falls little has no level that shows it."""
        return []

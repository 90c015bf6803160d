"""wav2vec-U: a generator reads speech as phones, a discriminator compares them with a text."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from w2v2dist.config import ConfigError
from w2v2dist.decode.scoring import errors
from w2v2dist.lm.arpa import Arpa, read_arpa
from w2v2dist.runtime.keyed import keyed_seed
from w2v2dist.training.schedules import learning_rate
from w2v2dist.training.task import Group, Reading, Record, Transcript, Update
from w2v2dist.unsupervised.config import UnsupervisedConfig
from w2v2dist.unsupervised.gan import DISCRIMINATOR, GENERATOR, Gan, GanBatch, read_batch
from w2v2dist.unsupervised.gan_source import GanSource, Stores, open_stores
from w2v2dist.unsupervised.phone_text import PAD
from w2v2dist.unsupervised.selection import Scorer, phones_of

SCORE = "weighted_lm_ppl"
WON = (
    "the discriminator has won: try another seed, a larger data.batch_size or losses.penalty_weight"
)
COLLAPSED = (
    "few phones are in use: try another seed, a larger losses.diversity_weight, or look at the "
    "rate of the outputs (14 to 16 a second converge)"
)
UNLIKELY = (
    "what is read is no text of this language yet: try other seeds (`submit.py --sweep`), and see "
    "docs/unsupervised.md for what goes wrong"
)
# Loss terms by the turn that has them; each is a sum over the rows
TERMS = {
    GENERATOR: ("fooling_loss", "diversity_loss", "smoothness_loss", "auxiliary_loss"),
    DISCRIMINATOR: ("fake_loss", "real_loss", "gradient_penalty"),
}


class UnsupervisedTask:
    """The two networks in turns, the generator first."""

    best_metric = f"valid/{SCORE}"

    def __init__(self, config: UnsupervisedConfig, source: GanSource) -> None:
        self.config, self._source = config, source
        symbols = source.text.symbols
        torch.manual_seed(keyed_seed(config.seed, "init"))
        self.gan = Gan(config.model, config.losses, source.train.dim, len(symbols))
        self.groups = {
            GENERATOR: Group(self.gan.generator, config.optimizer),
            DISCRIMINATOR: Group(self.gan.discriminator, config.optimizer.discriminator),
        }
        self.records = {
            "phones": {"symbols": symbols},
            "features": {"dim": source.train.dim, **source.train.made_by},
        }
        self.notes: Sequence[str] = [
            f"{len(symbols)} symbols, features of width {source.train.dim}, "
            f"{len(source.text):,} lines of text"
        ]
        self._scorer: Scorer | None = None
        if source.valid is not None:
            self._scorer = Scorer(symbols, *(_lm(source, silence) for silence in (True, False)))
            self._scorer.read_text(source.text)
        self._likeness = math.nan  # of the last validation
        self._transcripts: list[Transcript] = []

    def check(self, world_size: int) -> None:
        """Raise ConfigError for more than one process: batch norm and joining see a whole batch."""
        if world_size > 1:
            raise ConfigError(
                f"{world_size} processes were started, but task unsupervised trains in one: start "
                "one (a GPU trains it in hours), and several runs with launch/submit.py --sweep"
            )

    def source(self) -> GanSource:
        """Features and text."""
        return self._source

    def update(self, step: int) -> Update:
        """The generator's turn at odd steps (the first), the discriminator's at even ones."""
        schedule = self.config.schedule
        lr = learning_rate(schedule, step, self.config.loop.max_steps)
        if step % 2:
            return Update(GENERATOR, lr)
        return Update(DISCRIMINATOR, lr * schedule.discriminator_peak_lr / schedule.peak_lr)

    def losses(self, engine: Any, batch: GanBatch, step: int, seed: int) -> dict[str, Tensor]:
        """The loss of this step's turn with its terms; in validation (step 0) the hypotheses'
        scores."""
        if step == 0:
            return self._validation(batch)
        turn = self.update(step).group
        sums = self.gan.losses(batch, turn)
        assert batch.text is not None
        rows = torch.tensor(batch.num_targets, device=sums["loss"].device)
        sums |= {"num_rows": rows, f"num_{turn}_rows": rows, "num_updates": torch.ones_like(rows)}
        return sums | {"real_items": (batch.text != PAD).sum()}

    def _validation(self, batch: GanBatch) -> dict[str, Tensor]:
        assert self._scorer is not None
        assert self._source.valid is not None
        symbols, read = self._source.text.symbols, read_batch(self.gan.generator, batch)
        sums = self._scorer.sums(read)
        silence = len(symbols) - 1
        said = [" ".join(symbols[i] for i in phones_of(row, silence)) for row in read]
        truth = [reference(self._source.valid.labels.get(k), symbols) for k in batch.keys]
        counted = errors(truth, said, "word")  # phones are separated as words are
        sums["num_errors"] = float(sum(e.total for e in counted))
        sums["num_reference"] = float(sum(e.num_units for e in counted))
        self._transcripts = [
            Transcript(key, t, s, f"{e.total} of {e.num_units} phones" if t else "")
            for key, t, s, e in zip(batch.keys, truth, said, counted, strict=True)
        ]
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Means a row of the losses of each turn and of their terms; of validation the scores, and
        the phone error rate where it has labels (for watching alone)."""
        if "num_updates" not in sums:
            return self._scores(sums)
        out = {"loss": sums["loss"] / sums["num_rows"]}
        for turn, terms in TERMS.items():
            if rows := sums.get(f"num_{turn}_rows", 0.0):
                found = {term: sums[term] / rows for term in terms if term in sums}
                out |= {f"{turn}_loss": sum(found.values()), **found}
        for name in ("code_perplexity", "prob_perplexity"):
            out[name] = sums[name] / sums["num_updates"]
        return out | {name: sums[name] / sums["num_rows"] for name in ("fake_items", "real_items")}

    def _scores(self, sums: dict[str, float]) -> dict[str, float]:
        assert self._scorer is not None
        out = self._scorer.metrics(sums)
        self._likeness = out.get("text_likeness", math.nan)
        if sums.get("num_reference"):
            out["per"] = sums["num_errors"] / sums["num_reference"]
        return out

    def transcripts(self, count: int) -> list[Transcript]:
        """Of the last batch of validation, the first `count`."""
        return self._transcripts[:count]

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """Both learning rates: `lr` is that of the step's turn."""
        lr = learning_rate(self.config.schedule, step, self.config.loop.max_steps)
        ratio = self.config.schedule.discriminator_peak_lr / self.config.schedule.peak_lr
        return {"generator_lr": lr, "discriminator_lr": lr * ratio}

    def progress(self, amount: float) -> dict[str, float]:
        """Utterances."""
        return {"utterances": amount}

    def readings(self, record: Record) -> list[Reading]:
        """Whether the discriminator has won, the phones have collapsed, and what the last
        validation read is no text."""
        alarms, step = self.config.alarms, record["step"]
        if step < alarms.grace_steps:
            return []
        found = []
        if "fake_loss" in record:
            worst = max(record["fake_loss"], record["real_loss"])
            limit = alarms.min_discriminator_loss
            found.append(Reading("discriminator_won", worst, limit, worst < limit, WON))
        codes, limit = (
            record["code_perplexity"],
            alarms.min_code_usage * self.gan.generator.num_symbols,
        )
        found.append(Reading("code_collapse", codes, limit, codes < limit, COLLAPSED))
        if not math.isnan(self._likeness):
            limit = alarms.min_text_likeness
            bad = self._likeness < limit
            found.append(Reading("no_language", self._likeness, limit, bad, UNLIKELY))
        return found


def _lm(source: GanSource, with_silence: bool) -> Arpa:
    """The text's phone n-gram. Raises ConfigError where it is not there."""
    path = source.text.lm_path(with_silence)
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist, with which the hypotheses of data.valid are scored: "
            "`w2v2dist unsupervised text` writes it, or `w2v2dist lm ngram` from the lines of "
            "phones; data.valid=null trains without scores"
        )
    return read_arpa(path)


def reference(label: dict[str, str] | None, symbols: list[str]) -> str:
    """The phones that an utterance's label has, without silence; "" where it has none."""
    phones = (label or {}).get("phones", "").split()
    return " ".join(phone for phone in phones if phone != symbols[-1])


def unsupervised_source(config: UnsupervisedConfig) -> GanSource:
    """The data of a configuration. Raises ConfigError."""
    stores: Stores = open_stores(config.data)
    num_targets = config.model.num_targets if config.losses.auxiliary_weight else 0
    return GanSource(
        config.data, config.seed, config.model.generator, stores, num_targets=num_targets
    )

"""Fine-tuning with CTC on characters or phones, from any model or random weights (section 3.3)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.batch import Rows, SpeechBatch, core, empty_waveform, encode_labels, pad
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.source import SpeechSource
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.decode.scoring import RATES, error_counts, error_rates
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC
from w2v2dist.model.ctc import ctc_loss
from w2v2dist.model.masking import channel_mask, span_mask
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.tasks.pretrained import load_pretrained
from w2v2dist.tasks.speech import SpeechConfig, SpeechTask, dropped_layers, empty_core
from w2v2dist.training.task import Reading, Record, Transcript

EMPTY_SAMPLES = 16_000  # of a slot without utterances
UNITS = {"wer": "words", "cer": "letters", "per": "phones"}  # what error rates count


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(SpeechConfig):
    """Everything about a fine-tuning run."""

    task: Literal["finetune"] = "finetune"
    # The model to start from, whatever head it has: a run folder (its best checkpoint), a step
    # folder, one of Hugging Face, an id of its hub, a .pt of fairseq; null: random weights
    pretrained: str | None = field(default=None, metadata={"path": True})
    freeze_steps: int = 10_000  # only the output layer is trained before
    freeze_feature_encoder: bool = True
    # What chooses the best checkpoint: valid/wer where the alphabet has words, valid/per for
    # phones, else valid/cer
    best_metric: Literal["auto", "valid/wer", "valid/cer", "valid/per"] = "auto"


@dataclass(kw_only=True, slots=True)
class FinetuneBatch(SpeechBatch):
    """B utterances, T frames, E width of the Transformer, L label tokens in all."""

    on_host: ClassVar[frozenset[str]] = SpeechBatch.on_host | {"target_lengths"}

    mask: Tensor | None = None  # (B, T) bool
    channel_mask: Tensor | None = None  # (B, E) bool
    targets: Tensor  # (L,) int64, end to end
    target_lengths: Tensor  # (B,) int64
    texts: list[str]


@dataclass(frozen=True, slots=True)
class FinetuneCollate:
    """Padded utterances with labels; in training with masks keyed by (seed, step, slot)."""

    model: Wav2Vec2Config
    alphabet: Alphabet
    seed: int
    train: bool

    def __call__(self, rows: Rows | None) -> FinetuneBatch:
        # In validation a label longer than its audio counts as it is
        limit = self.model.num_frames if self.train else None
        targets = [] if rows is None else encode_labels(rows, self.alphabet, limit)
        if rows is None or not rows.keys:
            # It has a mask, of nothing, where the others have one: every rank has the same set of
            # gradients, or ZeRO exchanges buckets of different sizes
            frames = self.model.num_frames(EMPTY_SAMPLES)
            masked = self.train and self.model.mask_prob > 0
            return FinetuneBatch(
                **empty_core(rows),
                waveforms=empty_waveform(self.seed, EMPTY_SAMPLES),
                mask=torch.zeros(1, frames, dtype=torch.bool) if masked else None,
                targets=torch.tensor([int(self.alphabet.blank == 0)]),  # any but the blank
                target_lengths=torch.tensor([1]),
                texts=[""],
            )
        waveforms, num_samples = pad(rows.waveforms)
        width = self.model.num_frames(waveforms.shape[1])
        # Of what was drawn for the planned rows, the usable ones
        drawn = self.draw(rows.micro) if self.train else (None, None)
        mask, channels = (None if d is None else d[rows.position] for d in drawn)
        mask = None if mask is None else mask[:, :width]
        return FinetuneBatch(
            **core(rows, float(len(rows.keys)), mask),
            waveforms=waveforms,
            num_samples=num_samples,
            mask=mask,
            channel_mask=channels,
            targets=torch.cat([torch.tensor(ids) for ids in targets]),
            target_lengths=torch.tensor([len(ids) for ids in targets]),
            texts=[self.alphabet.decode(ids, collapse=False) for ids in targets],
        )

    def draw(self, micro: MicroBatch) -> tuple[Tensor | None, Tensor | None]:
        """Time (rows, T) and channel mask (rows, E) of all planned rows, from lengths; or None."""
        rng, num_rows = keyed_rng(self.seed, "masks", micro.step, micro.slot), len(micro.ids)
        frames = [self.model.num_frames(int(n)) for n in micro.num_samples]
        mask = channels = None
        if self.model.mask_prob:
            mask = torch.from_numpy(span_mask(rng, frames, num_rows, self.model))
        if self.model.channel_mask_prob:
            channels = torch.from_numpy(channel_mask(rng, num_rows, self.model))
        return mask, channels


def finetune_source(config: FinetuneConfig, alphabet: Alphabet) -> SpeechSource:
    """Whole utterances of data.train with their labels, and their masks."""

    def collate(seed: int, train: bool) -> FinetuneCollate:
        return FinetuneCollate(config.model, alphabet, seed, train)

    return SpeechSource(config.data, config.seed, collate, crop=False, with_labels=True)


class FinetuneTask(SpeechTask):
    """The CTC model, its data, losses and metrics."""

    def __init__(
        self, config: FinetuneConfig, alphabet: Alphabet, *, skip_pretrained: bool = False
    ) -> None:
        self.config, self.alphabet = config, alphabet
        self.best_metric = _best_metric(config.best_metric, alphabet)
        self.records = {"alphabet": alphabet.to_dict()}
        torch.manual_seed(keyed_seed(config.seed, "init"))
        self.model = Wav2Vec2ForCTC(config.model, alphabet.num_tokens)
        self.model.freeze_feature_encoder = config.freeze_feature_encoder
        self.notes = [f"data.tokens={config.data.tokens}: {alphabet}, best by {self.best_metric}"]
        if alphabet.units == "characters" and not alphabet.has_words:
            self.notes.append(
                "its alphabet has no |: blanks in texts mean nothing, words run together"
            )
        if config.pretrained and not skip_pretrained:
            self.notes += load_pretrained(
                self.model, config.pretrained, alphabet, config.data.normalize
            )
        # Key, reference and hypothesis of the last micro-batch of validation
        self._read: list[tuple[str, str, str]] = []
        super().__init__(config, self.model)

    def source(self) -> SpeechSource:
        """Whole utterances of data.train with their labels."""
        return finetune_source(self.config, self.alphabet)

    def losses(self, engine: Any, batch: FinetuneBatch, step: int, seed: int) -> dict[str, Tensor]:
        """CTC loss summed over utterances (nats); without gradients also errors (greedy)."""
        out = engine(
            batch.waveforms,
            batch.num_samples,
            batch.mask,
            batch.channel_mask,
            dropped_layers(self.config.model, seed, step, batch.slot),
            freeze_transformer=0 < step <= self.config.freeze_steps,
        )
        labels, blank = (batch.targets, batch.target_lengths), self.alphabet.blank
        sums = {
            "loss": ctc_loss(out.logits, out.num_frames, *labels, blank),
            "num_utterances": torch.full((), batch.num_targets, device=out.logits.device),
        }
        if not torch.is_grad_enabled():
            hypotheses = greedy_text(out.logits, out.num_frames, self.alphabet)
            keys = batch.used["keys"] if batch.used else []  # an empty slot has one text, of nobody
            self._read = [*zip(keys, batch.texts, hypotheses, strict=False)]
            counts = error_counts(batch.texts, hypotheses)
            sums |= {name: torch.tensor(float(value)) for name, value in counts.items()}
        return sums

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """CTC loss per utterance (nats), and error rates where there was decoding."""
        out = {"loss": sums["loss"] / max(sums["num_utterances"], 1.0)}
        if "num_words" in sums:
            if not sums["num_words"]:
                raise ConfigError(
                    "no utterance of data.valid has a usable label: give it transcribed shards"
                )
            out |= error_rates(sums, self.alphabet.error_rates)
        return {**out, "num_utterances": sums["num_utterances"]}

    def transcripts(self, count: int) -> list[Transcript]:
        """The first utterances of the last micro-batch of validation, read greedily."""
        rate = self.alphabet.error_rates[0]
        out = []
        for key, reference, hypothesis in self._read[:count]:
            counts = error_counts([reference], [hypothesis])
            wrong, all_ = (counts[name] for name in RATES[rate])
            said = f"{wrong} of {all_} {UNITS[rate]}"
            out.append(Transcript(key, reference, hypothesis, said))
        return out

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """Whether the Transformer is frozen."""
        return {"frozen": float(step <= self.config.freeze_steps)}

    def readings(self, record: Record) -> list[Reading]:
        """None: a CTC loss has no chance level."""
        return []


def _best_metric(named: str, alphabet: Alphabet) -> str:
    """The metric that chooses the best checkpoint. Raises ConfigError for one that is not there."""
    known = [f"valid/{name}" for name in alphabet.error_rates]
    if named not in ("auto", *known):
        raise ConfigError(
            f"best_metric is {named!r} but on this alphabet there is {' and '.join(known)}: "
            "choose one of them, or best_metric=auto"
        )
    return known[0] if named == "auto" else named

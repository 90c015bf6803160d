"""Fine-tuning with CTC on letters or phones, from pre-trained or random weights (section 3.3)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet, alphabet
from w2v2dist.data.batch import Rows, SpeechBatch, core, empty_waveform, encode_labels, pad
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.source import SpeechSource
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.decode.scoring import error_counts
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC
from w2v2dist.model.ctc import ctc_loss
from w2v2dist.model.masking import channel_mask, span_mask
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.tasks.speech import SpeechTask, dropped_layers, empty_core
from w2v2dist.training.config import TrainingConfig
from w2v2dist.training.task import Reading, Record

EMPTY_SAMPLES = 16_000  # of a slot without utterances


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(TrainingConfig):
    """Everything about a fine-tuning run."""

    task: Literal["finetune"] = "finetune"
    # Run folder (its best checkpoint) or step folder to start from; null: random weights
    pretrained: str | None = None
    freeze_steps: int = 10_000  # only the output layer is trained before
    freeze_feature_encoder: bool = True


@dataclass(kw_only=True, slots=True)
class FinetuneBatch(SpeechBatch):
    """B utterances, T frames, E width of the Transformer, L label tokens in all."""

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
            return FinetuneBatch(
                **empty_core(rows),
                waveforms=empty_waveform(self.seed, EMPTY_SAMPLES),
                targets=torch.tensor([5]),
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


def finetune_source(config: FinetuneConfig) -> SpeechSource:
    """Whole utterances of data.train with their labels, and their masks."""
    tokens = alphabet(config.data.tokens)

    def collate(seed: int, train: bool) -> FinetuneCollate:
        return FinetuneCollate(config.model, tokens, seed, train)

    return SpeechSource(config.data, config.seed, collate, crop=False, with_labels=True)


class FinetuneTask(SpeechTask):
    """The CTC model, its data, losses and metrics."""

    best_metric = "valid/wer"

    def __init__(self, config: FinetuneConfig, *, skip_pretrained: bool = False) -> None:
        self.config = config
        self.alphabet = alphabet(config.data.tokens)
        torch.manual_seed(keyed_seed(config.seed, "init"))
        self.model = Wav2Vec2ForCTC(config.model, self.alphabet.num_tokens)
        self.model.freeze_feature_encoder = config.freeze_feature_encoder
        if config.pretrained and not skip_pretrained:
            load_pretrained(self.model, config.pretrained, config.data.tokens)
        super().__init__(config, self.model)

    def source(self) -> SpeechSource:
        """Whole utterances of data.train with their labels."""
        return finetune_source(self.config)

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
        sums = {
            "loss": ctc_loss(out.logits, out.num_frames, batch.targets, batch.target_lengths),
            "num_utterances": torch.tensor(batch.num_targets, device=out.logits.device),
        }
        if not torch.is_grad_enabled():
            hypotheses = greedy_text(out.logits, out.num_frames, self.alphabet)
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
            out["wer"] = sums["word_errors"] / max(sums["num_words"], 1.0)
            out["cer"] = sums["letter_errors"] / max(sums["num_letters"], 1.0)
        return {**out, "num_utterances": sums["num_utterances"]}

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """Whether the Transformer is frozen."""
        return {"frozen": float(step <= self.config.freeze_steps)}

    def readings(self, record: Record) -> list[Reading]:
        """None: a CTC loss has no chance level."""
        return []


def load_pretrained(model: Wav2Vec2ForCTC, source: str, tokens: str) -> None:
    """Copy the weights of a run folder (its best checkpoint, else its latest) or step folder into
    `model`: the encoder, and of a fine-tuning on the same tokens the output layer. Raises
    ConfigError where the source is not there or another library's, CheckpointError where its model
    is another."""
    path = Path(source)
    if not path.exists():
        raise ConfigError(
            f"pretrained is {source!r}, which does not exist: give the run folder of a "
            "pre-training, or pretrained=null to train from random weights"
        )
    if path.is_file() or (path / "config.json").exists():
        raise ConfigError(
            f"pretrained is {source!r}, which is no run folder: if it is of fairseq or Hugging "
            f"Face, run `w2v2dist import {source} --output DIR` and give DIR"
        )
    folder = checkpoint.find(path, None)
    saved = checkpoint.read_meta(folder)["config"]
    continued = saved["task"] == "finetune" and saved["data"]["tokens"] == tokens
    prefix = "" if continued else "encoder."
    values = {k: v for k, v in checkpoint.read_parameters(folder).items() if k.startswith(prefix)}
    checkpoint.load_into(model, values, str(folder), prefix)

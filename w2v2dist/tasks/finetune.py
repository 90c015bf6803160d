"""Fine-tuning with CTC on letters or phones, from pre-trained or random weights (section 3.3 of the
paper)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import tokenizer
from w2v2dist.data.loader import Batch, Collate, Rows, pad
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.decode.scoring import error_counts
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC
from w2v2dist.model.ctc import ctc_loss
from w2v2dist.model.masking import channel_mask, span_mask
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.training.loop import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(TrainingConfig):
    """Everything about a fine-tuning run."""

    task: Literal["finetune"] = "finetune"
    # Run folder (its best checkpoint) or step folder to start from; null: random weights
    pretrained: str | None = None
    freeze_steps: int = 10_000  # only the output layer is trained before
    freeze_feature_encoder: bool = True


@dataclass(frozen=True, slots=True)
class FinetuneCollate:
    """Padded utterances with their labels, and in training time and channel masks keyed by (seed,
    step, slot)."""

    model: Wav2Vec2Config
    tokens: str
    seed: int
    train: bool

    def __call__(self, rows: Rows | None) -> Batch:
        if rows is not None:
            targets = self._targets(rows)
        if rows is None or not rows.keys:
            noise = keyed_rng(self.seed, "empty").standard_normal(16_000).astype("float32")
            one = torch.ones(1, 1, dtype=torch.long)
            step, slot = (0, 0) if rows is None else (rows.micro.step, rows.micro.slot)
            batch = Batch(step, slot, torch.from_numpy(noise)[None], num_targets=0.0)
            batch.targets, batch.target_lengths, batch.texts = one * 5, one[0], [""]
            batch.bad = [] if rows is None else rows.bad
            return batch
        batch = self.audio_batch(rows)
        batch.targets = torch.cat([torch.tensor(t) for t in targets])
        batch.target_lengths = torch.tensor([len(t) for t in targets])
        batch.texts = [tokenizer(self.tokens).decode(t, collapse=False) for t in targets]
        return batch

    def audio_batch(self, rows: Rows) -> Batch:
        """The batch without its labels."""
        waveforms, num_samples = pad(rows.waveforms)
        batch = Batch(
            step=rows.micro.step,
            slot=rows.micro.slot,
            waveforms=waveforms,
            num_samples=num_samples,
            num_targets=float(len(rows.keys)),
            keys=rows.keys,
            speeds=rows.speeds,
            starts=rows.starts,
            lengths=[len(w) for w in rows.waveforms],
            bad=rows.bad,
        )
        if self.train:
            self._draw(batch, rows)
        return batch

    def _targets(self, rows: Rows) -> list[list[int]]:
        """Token ids of every row; rows without usable labels are rejected."""
        field_name = "text" if self.tokens == "letters" else "phones"
        targets: list[list[int]] = []
        for row in reversed(range(len(rows.keys))):
            try:
                if not rows.labels[row].get(field_name):
                    raise ValueError(
                        f"has no {field_name!r} label: fine-tuning needs one for every "
                        f"utterance; build the shards "
                        "from transcribed audio"
                    )
                ids = tokenizer(self.tokens).encode(rows.labels[row][field_name])
                num_frames = self.model.num_frames(len(rows.waveforms[row]))
                if self.train and len(ids) > num_frames:  # in validation it counts as it is
                    raise ValueError(
                        f"its label has {len(ids)} tokens but its audio only {num_frames} frames"
                    )
                targets.insert(0, ids)
            except ValueError as error:
                rows.reject(row, str(error))
        return targets

    def _draw(self, batch: Batch, rows: Rows) -> None:
        """Masks for the planned rows, of which the usable ones are kept."""
        rng = keyed_rng(self.seed, "masks", batch.step, batch.slot)
        num_rows = len(rows.micro.ids)
        frames = [self.model.num_frames(int(n)) for n in rows.micro.num_samples]
        width = self.model.num_frames(batch.waveforms.shape[1])
        if self.model.mask_prob:
            mask = span_mask(rng, frames, num_rows, self.model)
            batch.mask = torch.from_numpy(mask[rows.position][:, :width])
        if self.model.channel_mask_prob:
            batch.channel_mask = torch.from_numpy(
                channel_mask(rng, num_rows, self.model)[rows.position]
            )


class FinetuneTask:
    """The CTC model, its batches, losses and metrics."""

    crop = False
    with_labels = True
    best_metric = "valid/wer"

    def __init__(self, config: FinetuneConfig, *, skip_pretrained: bool = False) -> None:
        self.config = config
        self.tokenizer = tokenizer(config.data.tokens)
        torch.manual_seed(keyed_seed(config.seed, "init"))
        self.model = Wav2Vec2ForCTC(config.model, self.tokenizer.num_tokens)
        self.model.freeze_feature_encoder = config.freeze_feature_encoder
        if config.pretrained and not skip_pretrained:
            load_pretrained(self.model, config.pretrained, config.data.tokens)

    def collate(self, train: bool, seed: int | None = None) -> Collate:
        """Makes batches in the workers; `seed` instead of the configured one."""
        config = self.config
        seed = config.seed if seed is None else seed
        return FinetuneCollate(config.model, config.data.tokens, seed, train)

    def losses(
        self, engine: Any, batch: Batch, step: int, drop_layers: list[bool] | None
    ) -> dict[str, Tensor]:
        """CTC loss summed over utterances (nats); without gradients also word and letter errors of
        greedy decoding."""
        frozen = 0 < step <= self.config.freeze_steps
        out = engine(
            batch.waveforms, batch.num_samples, batch.mask, batch.channel_mask, drop_layers,
            freeze_transformer=frozen,
        )  # fmt: skip
        assert batch.targets is not None
        assert batch.target_lengths is not None
        sums = {
            "loss": ctc_loss(
                out.logits, out.num_frames, batch.targets.flatten(), batch.target_lengths
            ),
            "num_utterances": torch.tensor(batch.num_targets, device=out.logits.device),
        }
        if not torch.is_grad_enabled():
            hypotheses = greedy_text(out.logits, out.num_frames, self.tokenizer)
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


def load_pretrained(model: Wav2Vec2ForCTC, source: str, tokens: str) -> None:
    """Copy the weights of a run folder's best (else latest) checkpoint, or of a step folder, into
    `model`.

    Of a pre-training that is the encoder; a fine-tuning on the same tokens is continued, output
    layer included. Raises ConfigError where the source does not exist or is of another library,
    CheckpointError where its model is another.
    """
    path = Path(source)
    if not path.exists():
        raise ConfigError(
            f"pretrained is {source!r}, which does not exist: give the run folder of a "
            f"pre-training, or "
            "pretrained=null to train from random weights"
        )
    if path.is_file() or (path / "config.json").exists():
        raise ConfigError(
            f"pretrained is {source!r}, which is no run folder: if it is of fairseq or Hugging "
            f"Face, run `w2v2dist import {source} --output DIR` and give DIR"
        )
    best = (path / "checkpoints" / "best").exists()
    folder = checkpoint.find(path, "best" if best else "latest")
    saved = checkpoint.read_meta(folder)["config"]
    continued = saved["task"] == "finetune" and saved["data"]["tokens"] == tokens
    prefix = "" if continued else "encoder."
    values = {k: v for k, v in checkpoint.read_parameters(folder).items() if k.startswith(prefix)}
    checkpoint.load_into(model, values, str(folder), prefix)

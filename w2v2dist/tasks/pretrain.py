"""Pre-training: masked contrastive learning over jointly learned quantized units (section 3 of the
paper)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from w2v2dist.config import ConfigError
from w2v2dist.data.loader import Batch, Collate, Rows, pad
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForPretraining
from w2v2dist.model.masking import distractor_positions, span_mask
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.training.engine import Engine
from w2v2dist.training.loop import TrainingConfig
from w2v2dist.training.schedules import temperature


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(TrainingConfig):
    """Everything about a pre-training run."""

    task: Literal["pretrain"] = "pretrain"

    def __post_init__(self) -> None:
        if self.model.mask_prob <= 0:
            raise ConfigError(
                "model.mask_prob is 0 but pre-training learns from masked frames alone"
            )
        # Two frames more than a row's masks could leave: every row needs a positive and another
        # masked frame
        frames = self.model.num_frames(
            self.data.min_samples - self.data.min_samples % self.data.crop_multiple
        )
        if frames < 2 * self.model.mask_span_length:
            raise ConfigError(
                f"data.min_samples is {self.data.min_samples} ({frames} frames) but two spans of "
                f"model.mask_span_length = {self.model.mask_span_length} frames must fit: raise "
                f"data.min_samples"
            )


@dataclass(frozen=True, slots=True)
class PretrainCollate:
    """Waveforms of one length with their masks and distractors, keyed by (seed, step, slot); runs
    in a worker."""

    model: Wav2Vec2Config
    seed: int
    empty_samples: int
    train: bool

    def __call__(self, rows: Rows | None) -> Batch:
        if rows is None or not rows.keys:
            noise = (
                keyed_rng(self.seed, "empty").standard_normal(self.empty_samples).astype("float32")
            )
            step, slot = (0, 0) if rows is None else (rows.micro.step, rows.micro.slot)
            batch = self._draw(Batch(step, slot, torch.from_numpy(noise)[None], num_targets=0.0))
            if rows is not None:
                batch.bad = rows.bad
            batch.num_targets = 0.0
            return batch
        return self.audio_batch(rows)

    def audio_batch(self, rows: Rows) -> Batch:
        """The batch of the usable rows."""
        waveforms, lengths = pad(rows.waveforms)
        assert lengths is None, "the order crops every utterance of a micro-batch to one length"
        batch = Batch(
            step=rows.micro.step,
            slot=rows.micro.slot,
            waveforms=waveforms,
            num_targets=0.0,
            keys=rows.keys,
            speeds=rows.speeds,
            starts=rows.starts,
            lengths=[waveforms.shape[1]] * len(rows.keys),
            bad=rows.bad,
        )
        return self._draw(batch, rows.position, len(rows.micro.ids))

    def _draw(self, batch: Batch, position: list[int] | None = None, num_rows: int = 1) -> Batch:
        """Draw for all planned rows, then keep those that could be decoded: a corrupt one changes
        no other."""
        num_frames = self.model.num_frames(batch.waveforms.shape[1])
        rng = keyed_rng(self.seed, "masks" if self.train else "valid", batch.step, batch.slot)
        mask = span_mask(rng, num_frames, num_rows, self.model)
        num_masked = int(mask[0].sum())
        distractors = distractor_positions(rng, num_masked, num_rows, self.model.num_distractors)
        kept = list(range(num_rows)) if position is None else position
        batch.mask = torch.from_numpy(mask[kept])
        batch.distractors = torch.from_numpy(distractors[kept])
        batch.num_targets = float(num_masked * len(kept))
        return batch


class PretrainTask:
    """The pre-training model, its batches, losses and metrics."""

    crop = True
    with_labels = False
    best_metric = "valid/contrastive_loss"

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        torch.manual_seed(keyed_seed(config.seed, "init"))
        self.model = Wav2Vec2ForPretraining(config.model)

    def collate(self, train: bool, seed: int | None = None) -> Collate:
        """Makes batches in the workers; `seed` instead of the configured one."""
        config = self.config
        return PretrainCollate(
            config.model, config.seed if seed is None else seed, config.data.min_samples, train
        )

    def losses(
        self, engine: Engine, batch: Batch, step: int, drop_layers: list[bool] | None
    ) -> dict[str, Tensor]:
        """Sums over masked frames (nats), and what the perplexities are averaged with."""
        now = temperature(self.config.model.temperature, max(0, step - 1))
        out = engine(
            batch.waveforms, batch.mask, batch.distractors, temperature=now, drop_layers=drop_layers
        )
        count = torch.tensor(float(out.num_masked))
        return {
            "loss": out.loss,
            "contrastive_loss": out.contrastive_loss,
            "diversity_loss": out.diversity_loss,
            "feature_penalty": out.feature_penalty,
            "num_correct": out.num_correct,
            "code_perplexity": out.code_perplexity * out.num_masked,
            "prob_perplexity": out.prob_perplexity * out.num_masked,
            "num_masked": count.to(out.loss.device),
        }

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Losses in bits per masked frame (chance: log2(1 + distractors)); perplexities weighted by
        frames."""
        n = max(sums["num_masked"], 1.0)
        bits = ("loss", "contrastive_loss", "diversity_loss", "feature_penalty")
        out = {name: sums[name] / n / math.log(2) for name in bits}
        out["accuracy"] = sums["num_correct"] / n
        out |= {name: sums[name] / n for name in ("code_perplexity", "prob_perplexity")}
        return {**out, "num_masked": sums["num_masked"]}

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """The Gumbel temperature of the step."""
        return {"temperature": temperature(self.config.model.temperature, step - 1)}

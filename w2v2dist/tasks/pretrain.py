"""Pre-training: masked contrastive learning over jointly learned quantized units (section 3)."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from w2v2dist.config import ConfigError
from w2v2dist.data.batch import Rows, SpeechBatch, core, empty_waveform, pad
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.source import SpeechSource
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForPretraining
from w2v2dist.model.config import temperature
from w2v2dist.model.masking import distractor_positions, span_mask
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.tasks.probe import ProbeConfig
from w2v2dist.tasks.speech import SpeechConfig, SpeechTask, dropped_layers, empty_core
from w2v2dist.training.alarms import AlarmConfig
from w2v2dist.training.engine import Engine
from w2v2dist.training.schedules import warmup_steps
from w2v2dist.training.task import Reading, Record


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(SpeechConfig):
    """Everything about a pre-training run."""

    task: Literal["pretrain"] = "pretrain"
    probe: ProbeConfig = field(default_factory=ProbeConfig, metadata={"may_change": True})

    def __post_init__(self) -> None:
        self.probe.of(self.model.num_layers)
        if self.model.mask_prob <= 0:
            raise ConfigError(
                "model.mask_prob is 0 but pre-training learns from masked frames alone"
            )
        # Two frames more than a row's masks could leave: every row needs a positive and another
        # masked frame
        least, span = self.data.min_samples, self.model.mask_span_length
        frames = self.model.num_frames(least - least % self.data.crop_multiple)
        if frames < 2 * span:
            raise ConfigError(
                f"data.min_samples is {least} ({frames} frames) but two spans of "
                f"model.mask_span_length = {span} frames must fit: raise data.min_samples"
            )


@dataclass(kw_only=True, slots=True)
class PretrainBatch(SpeechBatch):
    """B utterances of one length, T frames, M masked frames, K distractors."""

    mask: Tensor  # (B, T) bool
    distractors: Tensor  # (B, M, K) int64


@dataclass(frozen=True, slots=True)
class PretrainCollate:
    """Waveforms of one length with masks and distractors keyed by (seed, step, slot)."""

    model: Wav2Vec2Config
    seed: int
    empty_samples: int
    train: bool

    def __call__(self, rows: Rows | None) -> PretrainBatch:
        if rows is None or not rows.keys:
            known = empty_core(rows)
            empty = MicroBatch.empty(known["step"], known["slot"], self.empty_samples)
            waveforms = empty_waveform(self.seed, self.empty_samples)
            mask, distractors = self.draw(empty)
        else:
            waveforms, lengths = pad(rows.waveforms)
            assert lengths is None, "the order crops every utterance of a micro-batch to one length"
            # Of what was drawn for all planned rows: a corrupt one changes no other
            mask, distractors = self.draw(rows.micro)
            if len(rows.position) < len(mask):
                mask, distractors = mask[rows.position], distractors[rows.position]
            known = core(rows, float(mask.sum()), mask)
        return PretrainBatch(**known, waveforms=waveforms, mask=mask, distractors=distractors)

    def draw(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Mask (rows, T) and distractors (rows, M, K) of all planned rows, from lengths alone."""
        num_rows, num_frames = len(micro.ids), self.model.num_frames(int(micro.num_samples[0]))
        rng = keyed_rng(self.seed, "masks" if self.train else "valid", micro.step, micro.slot)
        mask = span_mask(rng, num_frames, num_rows, self.model)
        num_masked = int(mask[0].sum())
        distractors = distractor_positions(rng, num_masked, num_rows, self.model.num_distractors)
        return torch.from_numpy(mask), torch.from_numpy(distractors)


def pretrain_source(config: PretrainConfig) -> SpeechSource:
    """Crops of data.train, without labels, and their masks and distractors."""

    def collate(seed: int, train: bool) -> PretrainCollate:
        return PretrainCollate(config.model, seed, config.data.min_samples, train)

    return SpeechSource(config.data, config.seed, collate, crop=True, with_labels=False)


class PretrainTask(SpeechTask):
    """The pre-training model, its data, losses and metrics."""

    best_metric = "valid/contrastive_loss"

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        torch.manual_seed(keyed_seed(config.seed, "init"))
        self.model = Wav2Vec2ForPretraining(config.model)
        super().__init__(config, self.model)

    def source(self) -> SpeechSource:
        """Crops of data.train, without labels."""
        return pretrain_source(self.config)

    def losses(
        self, engine: Engine, batch: PretrainBatch, step: int, seed: int
    ) -> dict[str, Tensor]:
        """Sums over masked frames (nats), and what the perplexities are averaged with."""
        out = engine(
            batch.waveforms,
            batch.mask,
            batch.distractors,
            temperature=temperature(self.config.model.temperature, max(0, step - 1)),
            drop_layers=dropped_layers(self.config.model, seed, step, batch.slot),
            all_features=False,
        )
        return {
            "loss": out.loss,
            "contrastive_loss": out.contrastive_loss,
            "diversity_loss": out.diversity_loss,
            "feature_penalty": out.feature_penalty,
            "num_correct": out.num_correct,
            "code_perplexity": out.code_perplexity * out.num_masked,
            "prob_perplexity": out.prob_perplexity * out.num_masked,
            # Filled on the device: a copy from the host would wait for the forward pass
            "num_masked": torch.full((), float(out.num_masked), device=out.loss.device),
        }

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Losses in bits per masked frame (chance: log2(1 + distractors)), perplexities."""
        n = max(sums["num_masked"], 1.0)
        bits = ("loss", "contrastive_loss", "diversity_loss", "feature_penalty")
        out = {name: sums[name] / n / math.log(2) for name in bits}
        out["accuracy"] = sums["num_correct"] / n
        out |= {name: sums[name] / n for name in ("code_perplexity", "prob_perplexity")}
        return {**out, "num_masked": sums["num_masked"]}

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """The Gumbel temperature of the step."""
        return {"temperature": temperature(self.config.model.temperature, step - 1)}

    def readings(self, record: Record) -> list[Reading]:
        """Chance level, code collapse and a leak of the answer."""
        warmup = warmup_steps(self.config.schedule, self.config.loop.max_steps)
        return contrastive_readings(self.config.alarms, self.config.model, warmup, record)


def contrastive_readings(
    config: AlarmConfig, model: Wav2Vec2Config, warmup: int, record: Record
) -> list[Reading]:
    """What a record of metrics says about learning to tell the masked frames apart."""
    if not record["num_masked"]:
        return []
    step, bits = int(record["step"]), float(record["contrastive_loss"])
    armed = step > warmup + config.grace_steps
    chance = math.log2(1 + model.num_distractors) - config.chance_margin
    accuracy, most = float(record["accuracy"]), config.max_accuracy
    leak = accuracy > most and step < config.early_steps
    longer = (
        "lower schedule.peak_lr (see `w2v2dist paper`), warm up longer, or raise "
        "alarms.grace_steps where the model only needs more time"
    )
    silent = "look for silent or repeated audio, from which the answer can be told"
    out = [
        Reading("chance_level", bits, chance, armed and bits > chance, longer),
        Reading("early_accuracy", accuracy, most, leak, silent),
    ]
    if model.quantize_targets or model.quantize_inputs:
        num_codes = model.num_codebooks * model.num_codebook_entries
        few = model.num_codebooks + config.min_code_usage * (num_codes - model.num_codebooks)
        used = float(record["code_perplexity"])
        spread = (
            "raise model.diversity_weight, lower schedule.peak_lr, or let the temperature fall "
            "more slowly"
        )
        out.append(Reading("code_collapse", used, few, armed and used < few, spread))
    return out

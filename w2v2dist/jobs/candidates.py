"""What `launch/submit.py --autotune` chooses among, and what it need not measure: pure functions
of a configuration and of the roofline's predictions."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from w2v2dist.config import flatten, to_dict
from w2v2dist.jobs.devices import GIB

SPLITS = (1, 2, 4, 8)
SURELY = 1.2  # a prediction so many times as large as what there is does not fit
SLACK = 1.25  # what is predicted to take so many times as long as the best is not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Settings that a step's speed and memory depend on: `split` cuts every micro-batch into so
    many, and a step has so many more."""

    split: int = 1
    activation_checkpointing: bool
    compile: bool
    zero_stage: int

    def overrides(self, config: Any) -> dict[str, Any]:
        """Dotted keys and values that differ from those of a configuration."""
        data, now = config.data, flatten(to_dict(config))
        wanted = {
            "data.virtual_world_size": data.virtual_world_size * self.split,
            "data.max_samples_per_slot": data.max_samples_per_slot // self.split,
            "model.activation_checkpointing": self.activation_checkpointing,
            "engine.compile": self.compile,
            "engine.zero_stage": self.zero_stage,
        }
        return {key: value for key, value in wanted.items() if value != now[key]}

    def named(self, now: "Candidate") -> str:
        """What differs from the present settings, in words."""
        on = {True: "on", False: "off"}
        said = {
            "split": f"micro-batches / {self.split}",
            "activation_checkpointing": f"checkpointing {on[self.activation_checkpointing]}",
            "compile": f"compile {on[self.compile]}",
            "zero_stage": f"ZeRO {self.zero_stage}",
        }
        changed = (text for key, text in said.items() if getattr(self, key) != getattr(now, key))
        return ", ".join(changed) or "as it is"


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the roofline says of a candidate."""

    step_seconds: float  # NaN: it does not know this GPU
    memory_bytes: float  # of a process


def present(config: Any) -> Candidate:
    """The settings as they are."""
    return Candidate(
        activation_checkpointing=config.model.activation_checkpointing,
        compile=config.engine.compile,
        zero_stage=config.engine.zero_stage,
    )


def all_candidates(config: Any, num_processes: int, *, new_run: bool) -> list[Candidate]:
    """Every combination that can be, the present one first. A split changes which samples a step
    has: only a new run may take it, and no further than data.max_crop fits into a micro-batch."""
    data, now = config.data, present(config)
    splits = [
        k
        for k in SPLITS
        if k == 1
        or (
            new_run
            and data.max_samples_per_slot % k == 0
            and data.max_samples_per_slot // k >= data.max_crop
        )
    ]
    least = 0 if config.engine.precision == "fp32" else 1  # in 16 bits stage 0 runs as 1
    stages = {now.zero_stage, least} if num_processes == 1 else {now.zero_stage, *range(least, 4)}
    found = [
        Candidate(
            split=split, activation_checkpointing=checkpointing, compile=compiled, zero_stage=stage
        )
        for split, checkpointing, compiled, stage in itertools.product(
            splits, (False, True), (False, True), sorted(stages)
        )
        if not (compiled and stage == 3)  # which the engine refuses
    ]
    return [now, *(c for c in found if c != now)]


def prune(
    config: Any, predicted: Mapping[Candidate, Predicted], memory_bytes: float, most: int
) -> tuple[list[Candidate], dict[Candidate, str]]:
    """The candidates to measure, the present one first where it can fit and then the most
    promising, at most `most`; and the others, each with the reason. Raises ValueError where nothing
    can fit into the `memory_bytes` of a process."""
    pruned: dict[Candidate, str] = {}
    for candidate, p in predicted.items():
        if p.memory_bytes > SURELY * memory_bytes:
            have = f"{memory_bytes / GIB:.1f}"
            pruned[candidate] = f"would need {p.memory_bytes / GIB:.1f} GiB of {have}"
    if len(pruned) == len(predicted):
        least = min(p.memory_bytes for p in predicted.values()) / GIB
        raise ValueError(
            f"nothing fits: a process has {memory_bytes / GIB:.1f} GiB and the smallest candidate "
            f"would need {least:.1f}: {REMEDY}"
        )
    left = {c: p for c, p in predicted.items() if c not in pruned}
    slower, now = _slower(left, memory_bytes), present(config)
    for candidate in left:
        plain = replace(candidate, activation_checkpointing=False)
        if candidate == now:
            continue
        if candidate != plain and _surely_fits(left.get(plain), memory_bytes):
            pruned[candidate] = "computes layers twice, and fits without"
        elif slower[candidate] > SLACK:
            pruned[candidate] = f"predicted {slower[candidate] - 1:.0%} slower than the best"

    def promise(candidate: Candidate) -> tuple[float, ...]:
        changes, memory = len(candidate.overrides(config)), left[candidate].memory_bytes
        return candidate != now, round(slower[candidate], 2), changes, memory

    ranked = sorted((c for c in left if c not in pruned), key=promise)
    for candidate in ranked[most:]:
        pruned[candidate] = "others promise more"
    return ranked[:most], pruned


def _surely_fits(p: Predicted | None, memory_bytes: float) -> bool:
    return p is not None and 0 < SURELY * p.memory_bytes <= memory_bytes


def _slower(
    predicted: Mapping[Candidate, Predicted], memory_bytes: float
) -> dict[Candidate, float]:
    """How many times as long as the best that surely fits a candidate takes: of compiled ones the
    best compiled, because what a compiler gains is the least certain of the predictions."""
    fit = [c for c, p in predicted.items() if p.memory_bytes <= memory_bytes] or [*predicted]
    out = {}
    for candidate, p in predicted.items():
        alike = [c for c in fit if c.compile == candidate.compile] or fit
        ratio = p.step_seconds / min(predicted[c].step_seconds for c in alike)
        out[candidate] = 1.0 if math.isnan(ratio) else ratio
    return out


REMEDY = (
    "lower data.max_crop, and then data.max_samples_per_slot (with a larger "
    "data.virtual_world_size for the same batch), or use more GPUs or larger ones"
)

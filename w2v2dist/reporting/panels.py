"""The curves of a report: which panels a training has, and their data for the page's script."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from w2v2dist.reporting import logs
from w2v2dist.reporting.page import cut
from w2v2dist.reporting.runs import ERRORS, Run
from w2v2dist.reporting.thin import MOST_POINTS, thin, trend

LEAST_POINTS = 200
ALL_POINTS = 120_000  # of a page's curves: 2 MB
MOST_MARKS = 400  # of a run
LONGEST_SENTENCE = 300  # characters of what a mark says
MOST_OTHERS = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """A title, and the label of each metric's curve; values are shown times `scale`. `steps`: a
    curve stays at a value until the next one. `note` says what a reader should know."""

    title: str
    curves: dict[str, str]
    scale: float = 1.0
    steps: bool = False
    note: str = ""


TRAIN_AND_VALID = ("train", "validation")


def _both(key: str, names: tuple[str, str] = TRAIN_AND_VALID) -> dict[str, str]:
    return {key: names[0], f"valid/{key}": names[1]}


LEARNING_RATE = Panel("learning rate", {"lr": "learning rate"})
GRADIENT = [
    Panel("gradient norm", {"grad_norm": "gradient norm"}),
    Panel("loss scale (fp16)", {"loss_scale": "loss scale"}),
]
MACHINE = [
    Panel("waiting for data (% of the time)", {"data_wait": "waiting"}, scale=100),
    Panel(
        "slowest process (s a record)",
        {"slowest_rank_seconds": "slowest", "median_rank_seconds": "median"},
        note="waiting for data and forward passes, in which no process waits for others",
    ),
    Panel("processes", {"world_size": "processes"}, steps=True),
]
PRETRAIN = [
    Panel("contrastive loss (bits)", _both("contrastive_loss")),
    Panel("accuracy (%)", _both("accuracy"), scale=100),
    Panel(
        "diversity and penalty (bits)",
        {"diversity_loss": "diversity", "feature_penalty": "penalty"},
    ),
    Panel(
        "perplexity (of all codebooks)",
        {"code_perplexity": "codes", "prob_perplexity": "probabilities"},
    ),
    Panel(
        "codes in use (%)",
        {"code_usage": "codes", "prob_usage": "probabilities"},
        scale=100,
        note="perplexity / number of codes; alarms.min_code_usage is the limit",
    ),
    Panel("Gumbel temperature", {"temperature": "temperature"}),
    LEARNING_RATE,
    *GRADIENT,
    Panel("throughput (× real time)", {"speed": "audio"}),
    *MACHINE,
]
FINETUNE = [
    Panel(f"{unit} errors (%)", {f"valid/{rate}": "validation"}, scale=100)
    for rate, unit in ERRORS.items()
] + [
    Panel("CTC loss (nats an utterance)", _both("loss")),
    LEARNING_RATE,
    *GRADIENT,
    Panel("throughput (× real time)", {"speed": "audio"}),
    *MACHINE,
]
LANGUAGE_MODEL = [
    Panel("perplexity", _both("perplexity")),
    Panel("loss (nats a token)", _both("loss")),
    LEARNING_RATE,
    *GRADIENT,
    Panel("throughput (tokens a second)", {"speed": "tokens"}),
    *MACHINE,
]
UNSUPERVISED = [
    Panel(
        "score without labels (lower is better)",
        {"valid/weighted_lm_ppl": "perplexity / usage²"},
        note="a whole batch of silence has none",
    ),
    Panel(
        "nats a phone, as text",
        {
            "valid/nll": "what is read",
            "valid/text_nll": "the text itself",
            "valid/shuffled_nll": "its phones in a random order",
        },
        note="alarms.min_text_likeness is how far towards the text it must come",
    ),
    Panel(
        "phones in use (%)",
        {"valid/phone_usage": "validation set", "valid/batch_usage": "a batch"},
        scale=100,
    ),
    Panel("phone errors (%), watched only", {"valid/per": "validation"}, scale=100),
    Panel(
        "discriminator (nats a row)",
        {"fake_loss": "speech", "real_loss": "text", "gradient_penalty": "gradient penalty"},
        note="speech and text both below alarms.min_discriminator_loss: it has won",
    ),
    Panel("generator (nats a row)", {"fooling_loss": "fooling", "diversity_loss": "diversity"}),
    Panel("smoothness", {"smoothness_loss": "smoothness"}),
    Panel("auxiliary targets", {"auxiliary_loss": "auxiliary"}),
    Panel(
        "perplexity (of all symbols)",
        {"code_perplexity": "most likely symbols", "prob_perplexity": "probabilities"},
        note="alarms.min_code_usage of the symbols is the limit of the most likely ones",
    ),
    Panel("phones a row", {"fake_items": "speech", "real_items": "text"}),
    Panel("learning rate", {"generator_lr": "generator", "discriminator_lr": "discriminator"}),
    *GRADIENT,
    Panel("throughput (utterances a second)", {"speed": "utterances"}),
    *MACHINE,
]
PANELS = {
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "language_model": LANGUAGE_MODEL,
    "unsupervised": UNSUPERVISED,
}
UNKNOWN = [Panel("loss", _both("loss")), LEARNING_RATE, *GRADIENT, *MACHINE]
# What no panel is made of, or what one shows in another form
NOT_SHOWN = set(
    "step time seconds data_wait_seconds slowest_rank slowest_host audio_hours tokens frozen bits "
    "loss utterances lr generator_loss discriminator_loss lm_ppl log_prob".split()
)
OF_SEVERAL = {"slowest_rank_seconds", "median_rank_seconds", "world_size"}  # of one alone: nothing
# Events that change what the curves mean get a line: name to what it is called
MARKED = {
    "resumed": "resumed",
    "preempted": "preempted",
    "alarm": "alarm",
    "rollback": "rolled back",
    "checkpoint_damaged": "damaged checkpoint",
}


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The panels of runs of one kind that have data; those of metrics that no panel knows last."""
    sizes = [run.series("world_size")[1] for run in runs]
    alone = all(size.max(initial=1) <= 1 for size in sizes)
    expected = PANELS.get(runs[0].task, UNKNOWN)
    expected = [p for p in expected if not alone or OF_SEVERAL.isdisjoint(p.curves)]
    found = [p for p in expected if any(_has(run, p) for run in runs)]
    known = {k.split("/")[-1] for panel in expected for k in panel.curves} | OF_SEVERAL
    keys: dict[str, None] = {}
    for run in runs:
        for table in (run.training, run.validation):
            keys |= dict.fromkeys(key for key in table.columns)
    others: dict[str, dict[str, str]] = {}
    for key in keys:
        name = key.split("/")[-1]
        shown = name in known and ("/" not in key or key.startswith("valid/"))
        if not shown and name not in NOT_SHOWN and not name.startswith("num_"):
            others.setdefault(name, {})[key] = key.rpartition("/")[0] or "train"
    probed = {k: f"layer {k[12:14]}" for k in sorted(keys) if k.startswith("probe/layer_")}
    if probed:
        others.pop("cer", None)
        note = "of a linear layer on frozen features, trained on minutes of labels"
        found.append(Panel("letters a probe misses (%)", probed, scale=100, note=note))
    more = [Panel(name, curves) for name, curves in list(others.items())[:MOST_OTHERS]]
    return found + [p for p in more if any(_has(run, p) for run in runs)]


def _has(run: Run, panel: Panel) -> bool:
    return any(len(run.series(key)[0]) for key in panel.curves)


@dataclass(slots=True)
class Charts:
    """The data of a page's curves, as they are added; `most` points of each curve."""

    most: int = MOST_POINTS
    panels: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of a group's panels

    @classmethod
    def for_runs(cls, groups: Sequence[Sequence[Run]]) -> "Charts":
        """With so many points a curve that the page keeps its size."""
        num_curves = sum(
            len(p.curves) * len(runs) for runs in groups if runs for p in panels_of(runs)
        )
        fair = ALL_POINTS // max(1, num_curves)
        return cls(most=min(MOST_POINTS, max(LEAST_POINTS, fair)))

    def add(self, panel: Panel, runs: Sequence[Run], group: str) -> int:
        """Add the panel of one run, or of several to be compared; its number on the page."""
        curves = [
            {"run": i, "label": _label(runs, i, panel, key), "dashed": j > 0, **curve}
            for i, run in enumerate(runs)
            for j, key in enumerate(panel.curves)
            if (curve := self._curve(run, key, panel.scale))
        ]
        if group not in self.marks:
            self.marks[group] = [m for i, run in enumerate(runs) for m in marks(run, i)]
        self.panels.append(
            {
                "title": panel.title,
                "group": group,
                "steps": panel.steps,
                "compared": len(runs) > 1,
                "curves": curves,
                "lines": _lines(panel, runs),
            }
        )
        return len(self.panels) - 1

    def _curve(self, run: Run, key: str, scale: float) -> dict[str, Any]:
        """The points of a metric's curve, and of its trend; {} where it has none."""
        steps, values = run.series(key)
        if not len(steps):
            return {}
        values = values * scale
        chosen = thin(values, self.most)
        middle, means = trend(steps, values)
        out: dict[str, Any] = {
            "x": steps[chosen].tolist(),
            "y": _short(values[chosen]),
            "trend_x": middle.tolist(),
            "trend_y": _short(means),
        }
        if key == "slowest_rank_seconds":
            place, names = run.slowest
            out["names"] = [names[i] for i in place[chosen].tolist()]
        return out


def _label(runs: Sequence[Run], number: int, panel: Panel, key: str) -> str:
    """What a curve is called: where runs are compared, by its run first."""
    if len(runs) == 1:
        return panel.curves[key]
    name = runs[number].name
    return name if len(panel.curves) == 1 else f"{name}, {panel.curves[key]}"


def _short(values: logs.Floats) -> list[float]:
    """Five digits of each, which a screen cannot show more than."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _lines(panel: Panel, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Levels to compare the curves with, where the runs share them: chance, the alarm's limit."""
    found: set[tuple[float, str]] = set()
    for run in runs:
        if "contrastive_loss" in panel.curves:
            found.add((run.chance_bits, f"chance {run.chance_bits:.3f}"))
        if "code_usage" in panel.curves:
            codebooks, usage = (
                run.number("model.num_codebooks", 2),
                run.number("alarms.min_code_usage", 0.03),
            )
            few = (codebooks + usage * (run.num_codes - codebooks)) / run.num_codes
            found.add((100 * few, f"collapse below {100 * few:.1f} %"))
    return [{"y": float(f"{y:.5g}"), "label": label} for y, label in sorted(found)[:3]]


def marks(run: Run, number: int = 0) -> list[dict[str, Any]]:
    """Steps at which something happened to a run: what, in a word and in a sentence."""
    out: list[dict[str, Any]] = []
    for event in run.events:
        step = logs.number(event.get("step"))
        if event["event"] in MARKED and np.isfinite(step):
            said = {"step": int(step), "kind": event["event"], "run": number}
            out.append({**said, "text": cut(_sentence(event), LONGEST_SENTENCE)})
    freeze = int(run.number("freeze_steps", 0)) if run.task == "finetune" else 0
    if 0 < freeze < run.last_step:
        text = "the Transformer trains from here on (freeze_steps)"
        out.append({"step": freeze, "kind": "freeze", "run": number, "text": text})
    return out[-MOST_MARKS:]


def _sentence(event: logs.Record) -> str:
    """What a mark says."""
    match event:
        case {"event": "resumed", "old_world_size": old, "new_world_size": new} if old != new:
            return f"resumed on {new} processes instead of {old}"
        case {"event": "alarm", "alarm": name, "value": value, "limit": limit}:
            shown = f"{logs.number(value):.4g}, limit {logs.number(limit):.4g}"
            return f"alarm {name}: {shown}, {event.get('action', '')}"
        case {"event": "preempted", "signal": signal}:
            return f"preempted (signal {signal}), saved"
    return MARKED[event["event"]]

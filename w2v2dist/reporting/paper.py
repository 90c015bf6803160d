"""A configuration against the paper's numbers and fairseq's: every deviation with its reason, and
whether the learning rate fits the batch. The numbers are in paper.yaml, each with its source."""

import argparse
import math
from pathlib import Path
from typing import Any

import yaml

from w2v2dist.config import flatten, parse_overrides, to_dict
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.reporting.references import Reference, references, show
from w2v2dist.runtime.logging import console
from w2v2dist.tasks.train import config_arguments, read_config
from w2v2dist.training.config import TrainingConfig

MUCH = 4  # a batch is much larger from here on
# What deviates from whom; a paper's search has several values
SOURCES = {"paper": "paper", "searched": "paper's grid", "released": "released file"}
SMALL_BATCH = (
    "WARNING: data.batch_size {rows} is far below {usual}: with batches of 8 the discriminator has "
    "won in reports of others, and so it may here; set data.batch_size={usual}"
)


def compare(
    config: TrainingConfig, path: str | Path, overrides: list[str], name: str | None = None
) -> list[str]:
    """The comparison in lines: the reference, audio hours (or tokens) per step, a warning where the
    learning rate belongs to a much larger batch, and each deviation with its reason.

    `path` and `overrides` are what `config` was read from: the file's comments are the reasons.
    Without `name` the reference is the one the file is named after, else the most similar one.
    Raises ValueError where the configuration's task has no reference `name`.
    """
    values = flatten(to_dict(config))
    if "pretrained" in values:
        values["pretrained"] = "a pre-trained model" if values["pretrained"] else "random weights"
    known = references(values["task"])
    if name is None:
        nearest = min(known, key=lambda other: len(deviations(values, known[other], {})))
        name = Path(path).stem if Path(path).stem in known else nearest
    if name not in known:
        raise ValueError(
            f"--reference is {name} but must be one of {', '.join(known)} "
            f"(those of task: {values['task']})"
        )
    reference = known[name]
    given = dict.fromkeys(flatten(parse_overrides(overrides)), "command line")
    found = deviations(values, reference, written_reasons(path) | given)
    lines = [f"{path} compared with {name}: {len(found)} deviation{'s' * (len(found) != 1)}"]
    lines += _amount(values, reference)
    width = max(map(len, found), default=0)
    return lines + [f"  {key:<{width}}  {text}" for key, text in found.items()]


def _amount(values: dict[str, Any], reference: Reference) -> list[str]:
    """What a step takes, beside the reference's, and a warning where that is much less."""
    name = reference.name
    if values["task"] == "language_model":
        tokens = values["data.virtual_world_size"] * values["data.max_tokens_per_slot"]
        return [f"tokens per step: {tokens:,} at most; {name}: no source says how many"]
    if values["task"] == "unsupervised":
        rows, usual = values["data.batch_size"], reference.values["data.batch_size"]
        ratio = "the same" if rows == usual else f"{rows / usual:.3g} times as many"
        line = f"utterances per step, and sentences: {rows}; {name} {usual}: {ratio}"
        return [line, *[SMALL_BATCH.format(rows=rows, usual=usual)] * (rows * MUCH <= usual)]
    hours, usual = audio_hours(values), audio_hours(reference.values)
    ratio = "the same" if hours == usual else f"{hours / usual:.3g} times as much"
    line = f"audio per step: {hours:.3g} h at most; {name} {usual:.3g} h: {ratio}"
    return [line, *learning_rate_warning(values, reference)]


def deviations(
    values: dict[str, Any], reference: Reference, reasons: dict[str, str]
) -> dict[str, str]:
    """Where `values` (by dotted key) differ from any source of the reference, in their order: key
    to "1 instead of 2 (source) [reason]". The reason is ours where the sources differ and the value
    is one of theirs, else the one in `reasons`, else that it is the default."""
    # What no key sets, such as a limit that we do not have, is as the paper says
    unset = {k: d["paper"] for k, d in reference.differences.items() if k not in values}
    out: dict[str, str] = {}
    for key, value in {**values, **unset}.items():
        split = reference.differences.get(key, {})
        ours = reference.values.get(key, value)
        sources = _said(split) or {reference.source: [ours]}
        others = [
            f"{' or '.join(map(show, values))} ({source})"
            for source, values in sources.items()
            if value not in values
        ]
        if others:
            held = [f" ({source})" for source, values in sources.items() if value in values]
            text = f"{show(value)}{''.join(held)} instead of {' or '.join(others)}"
            decided = split and (held or value == ours)
            reason = split["reason"] if decided else reasons.get(key, "default")
            out[key] = f"{text} [{reason}]"
    return out


def _said(split: dict[str, Any]) -> dict[str, list[Any]]:
    """Whose values are which, of a key in which the sources differ."""
    quoted = ", as others quote it" if split.get("source") == "Q" else ""
    return {
        named + quoted * (who != "released"): split[who] if who == "searched" else [split[who]]
        for who, named in SOURCES.items()
        if who in split
    }


def audio_hours(values: dict[str, Any]) -> float:
    """Hours of audio in one step, counted as the paper does: the most that the slots can hold."""
    samples = values["data.virtual_world_size"] * values["data.max_samples_per_slot"]
    return float(samples) / SAMPLE_RATE / 3600


def learning_rate_warning(values: dict[str, Any], reference: Reference) -> list[str]:
    """One line, or none: the batch is at most a quarter of the reference's, and the learning rate
    at least twice what the square root of that leaves of the reference's."""
    ratio = audio_hours(values) / audio_hours(reference.values)
    rate = values["schedule.peak_lr"]
    scaled = reference.values["schedule.peak_lr"] * math.sqrt(ratio)
    if ratio > 1 / MUCH or rate < scaled * math.sqrt(MUCH) * (1 - 1e-9):
        return []
    slots = math.ceil(values["data.virtual_world_size"] / ratio)
    text = (
        f"WARNING: schedule.peak_lr {show(rate)} belongs to a much larger batch, and the model "
        f"may not learn with it: set data.virtual_world_size={slots} (the batch of "
        f"{reference.name}; slots cost time, not memory) or schedule.peak_lr={show(scaled, 2)} "
        f"(scaled with the square root of the batch)"
    )
    if values["model.embed_dim"] < reference.values["model.embed_dim"]:
        text += "; a model as small as this one may bear more"
    return [text]


def written_reasons(path: str | Path) -> dict[str, str]:
    """Dotted key -> the comment on its line of a YAML file, else the file's name; `base:` first."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    inherited: dict[str, str] = {}
    own: dict[str, str] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{prefix}{key.value}.")
            elif prefix + key.value == "base":
                inherited.update(written_reasons(path.parent / value.value))
            else:
                rest = lines[key.start_mark.line][key.end_mark.column :]
                own[prefix + key.value] = rest.partition(" #")[2].strip() or path.name

    walk(yaml.compose("\n".join(lines)), "")
    return inherited | own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist paper` takes."""
    config_arguments(parser)
    named = "for example base_ls960 (default: the most similar one)"
    parser.add_argument("--reference", help=named)


def run(args: argparse.Namespace) -> None:
    """Compare a configuration with the paper and fairseq's released files: audio hours a
    step, a warning where the learning rate belongs to a much larger batch, every deviation.

    example:
      w2v2dist paper configs/base_ls960.yaml data.virtual_world_size=1
    """
    config = read_config(args.config, args.overrides)
    for line in compare(config, args.config, args.overrides, args.reference):
        console.print(line, markup=False)

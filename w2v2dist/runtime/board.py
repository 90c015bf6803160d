"""A run in TensorBoard: tensorboard/train, and tensorboard/NAME of each validation set with equal
tags, so that one chart shows both; what a resumption repeats is shown once."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

SAMPLE_RATE = 16_000  # of all audio of a training
LONGEST_S = 5  # of a recording: 160 kB a start
LONGEST_TEXT = 300  # characters of a cell
TRAIN = "train"
# Group -> metrics; the group comes first in a tag, and TensorBoard shows each as a section
GROUPS = {
    "loss": "loss contrastive_loss diversity_loss feature_penalty bits perplexity",
    "errors": "wer cer per accuracy",
    "codes": "code_perplexity prob_perplexity temperature",
    "optim": "lr grad_norm loss_scale frozen",
    "speed": "seconds_per_step audio_hours_per_second tokens_per_second slowest_rank "
    "slowest_rank_seconds median_rank_seconds world_size",
    "data": "audio_hours tokens num_utterances num_masked wait_fraction",
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")


class Board:
    """The event files of a run. `step` is the last that is done: what an attempt before showed of
    later ones is taken back, and of its validation too where that is `owed`: it comes again.
    All methods may raise OSError, and the writer has ended then."""

    def __init__(self, folder: Path, step: int, *, owed: bool = False) -> None:
        self._folder, self._step, self._owed = folder, step, owed
        self._writers: dict[str, SummaryWriter] = {}
        self._after = step  # the last training record
        for known in sorted(folder.glob("*/events.out.tfevents.*")):
            self._writer(known.parent.name)

    def _writer(self, name: str) -> SummaryWriter:
        """Of a sub-folder, "" for the folder itself; opened when first needed."""
        if name not in self._writers:
            again = self._owed and name not in ("", TRAIN)
            purge_step = self._step + (not again)
            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=purge_step)
        return self._writers[name]

    def scalars(self, record: Mapping[str, Any], time: float) -> None:
        """The numbers of a record of metrics (it has `step`); NAME/METRIC is a validation set's."""
        step, used = int(record["step"]), set()
        for key, value in (_speeds(record, self._after) | dict(record)).items():
            if key in ("step", "seconds", "data_wait_seconds"):  # the speeds say it better
                continue
            if isinstance(value, (int, float)):
                name, _, metric = key.rpartition("/")
                tag = f"{GROUP_OF.get(metric, 'other')}/{metric}"
                used.add(writer := self._writer(name or TRAIN))
                writer.add_scalar(tag, value, step, walltime=time)
        if "seconds" in record:
            self._after = step
        for writer in used:
            writer.flush()

    def recording(self, step: int, waveform: Tensor) -> None:
        """Something to listen to: the first seconds of a waveform (S,); quieter where too loud."""
        wave = waveform[: LONGEST_S * SAMPLE_RATE].detach().float().cpu()
        wave = wave / max(1.0, float(wave.abs().max()))
        writer = self._writer(TRAIN)
        writer.add_audio("data/recording", wave[None], step, sample_rate=SAMPLE_RATE)
        writer.flush()

    def table(self, name: str, tag: str, step: int, rows: Sequence[Sequence[str]]) -> None:
        """A table of texts of a validation set; the first row is its head."""
        writer = self._writer(name)
        writer.add_text(tag, markdown_table(rows), step)
        writer.flush()

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """What the run was configured with, beside the last value of each scalar. Which columns
        there are TensorBoard gathers from all runs, unless one of them lists its own."""
        simple = {k: v if isinstance(v, (int, float)) else str(v) for k, v in values.items()}
        _, start, _ = hparams(simple, {})  # type: ignore[no-untyped-call]
        self._summary(start)

    def finished(self) -> None:
        """All steps are done."""
        _, _, end = hparams({}, {})  # type: ignore[no-untyped-call]
        self._summary(end)

    def _summary(self, summary: Any) -> None:
        writer = self._writer("")
        assert writer.file_writer is not None
        writer.file_writer.add_summary(summary)
        writer.flush()

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()


def _speeds(record: Mapping[str, Any], after: int) -> dict[str, float]:
    """What a training record says of speed, per second and step; `after`: the record before."""
    seconds = record.get("seconds")
    if not seconds:
        return {}
    units = (unit for unit in ("audio_hours", "tokens") if unit in record)
    out = {f"{unit}_per_second": record[unit] / seconds for unit in units}
    if "data_wait_seconds" in record:
        out["wait_fraction"] = record["data_wait_seconds"] / seconds
    return {**out, "seconds_per_step": seconds / max(1, int(record["step"]) - after)}


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts; the first row is its head."""
    head, *rest = (f"| {' | '.join(map(_plain, row))} |" for row in rows)
    return "\n".join([head, "|" + "-|" * (head.count(" | ") + 1), *rest])


def _plain(text: str) -> str:
    """A text in one line of Markdown that says just that, cut where it is very long."""
    text = " ".join(text.split())
    if len(text) > LONGEST_TEXT:
        text = text[:LONGEST_TEXT] + "…"
    return MARKUP.sub(r"\\\1", html.escape(text, quote=False))

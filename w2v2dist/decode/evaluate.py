"""Transcribe shards with a fine-tuned model and score them."""

import argparse
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from w2v2dist.checkpoint import read_meta
from w2v2dist.config import ConfigError, from_dict
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.batch import Rows, SpeechBatch, core, encode_labels, pad
from w2v2dist.data.batching import validation_batches
from w2v2dist.data.config import DataConfig
from w2v2dist.data.loader import MicroBatches, iterate
from w2v2dist.data.source import open_index
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.decode.scoring import error_counts, error_rates
from w2v2dist.interop.open import OpenedModel, model_arguments, open_model
from w2v2dist.model import Wav2Vec2ForCTC
from w2v2dist.runtime.logging import append_jsonl, console, read_jsonl
from w2v2dist.training.bad_samples import most_frequent


@dataclass(kw_only=True, slots=True)
class LabelledBatch(SpeechBatch):
    """B utterances with their keys and what was said."""

    keys: list[str]
    texts: list[str]


@dataclass(frozen=True, slots=True)
class LabelledCollate:
    """Padded utterances with their labels as the alphabet writes them; runs in a worker."""

    alphabet: Alphabet

    def __call__(self, rows: Rows | None) -> LabelledBatch:
        assert rows is not None, "one process: there are no empty slots"
        targets = encode_labels(rows, self.alphabet, None)
        waveforms, num_samples = pad(rows.waveforms) if rows.keys else (torch.zeros(0, 0), None)
        return LabelledBatch(
            **core(rows, float(len(rows.keys))),
            waveforms=waveforms,
            num_samples=num_samples,
            keys=rows.keys,
            texts=[self.alphabet.decode(ids, collapse=False) for ids in targets],
        )


def evaluate(
    model: str,
    data: str | None = None,
    which: str | None = None,
    output: str | None = None,
    *,
    trust_pickle: bool = False,
) -> dict[str, float]:
    """Error rates (greedy) of a fine-tuned model (all that `open_model` opens) on shards (`data`,
    by default its run's data.valid), utterances of any length. Writes evaluation.json,
    hypotheses.tsv (key, reference, hypothesis) and skipped.jsonl (what could not be scored, and
    why) to `output`, by default the run folder."""
    opened = open_model(model, which, trust_pickle=trust_pickle)
    folder = _output(model, output)
    module, alphabet, _ = opened.recogniser()
    for note in opened.notes:
        console.print(f"note: {note}")
    config = _data_config(opened)
    data = data or config.valid
    if not data:
        raise ConfigError(f"{model} has no validation set of its own: name shards with --data")
    lines, skipped, seconds = _transcribe(module, alphabet, config, data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "skipped.jsonl").unlink(missing_ok=True)
    for record in skipped:
        append_jsonl(folder / "skipped.jsonl", record)
    counts = error_counts([line[1] for line in lines], [line[2] for line in lines])
    if not counts["num_letters"]:
        raise ConfigError(
            f"no utterance of {data} has a label that the model's alphabet ({alphabet}) can "
            f"spell ({len(skipped)} were skipped: {most_frequent(skipped)}): nothing can be scored"
        )
    result = {
        **error_rates(counts, alphabet.error_rates),
        "num_utterances": len(lines),
        "num_skipped": len(skipped),
        "seconds": round(seconds, 3),
        **counts,
    }
    rows = "".join("\t".join(line) + "\n" for line in sorted(lines))
    (folder / "hypotheses.tsv").write_text("key\treference\thypothesis\n" + rows, encoding="utf-8")
    scores = {"checkpoint": str(opened.source), "notes": opened.notes, "data": data, **result}
    (folder / "evaluation.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    return result


def _output(model: str, output: str | None) -> Path:
    """Where an evaluation is written."""
    if output:
        return Path(output)
    if (Path(model) / "config.yaml").exists():
        return Path(model)
    raise ConfigError(f"{model} is no run folder: say with --output where its results are to go")


def _data_config(opened: OpenedModel) -> DataConfig:
    """The run's data settings, of another library's model the defaults."""
    if (opened.source / "meta.json").exists():
        return from_dict(DataConfig, read_meta(opened.source)["config"]["data"], "data.")
    return DataConfig(normalize=bool(opened.normalize))


def _transcribe(
    model: Wav2Vec2ForCTC, alphabet: Alphabet, config: DataConfig, data: str | None
) -> tuple[list[tuple[str, str, str]], list[dict[str, Any]], float]:
    """(key, reference, hypothesis) of usable utterances, records of the others, seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    index = open_index(data, "data.valid")
    index.check_shard_sizes()
    micro = validation_batches(index, config, crop=False)
    if not micro:
        raise ConfigError(f"the shards {data} hold no utterances")
    dataset = MicroBatches(index, config, LabelledCollate(alphabet), with_labels=True)
    batches = iterate(dataset, micro, num_workers=config.num_workers, prefetch=2)
    lines: list[tuple[str, str, str]] = []
    skipped: list[dict[str, Any]] = []
    seconds = 0.0
    shown = track(batches, "transcribing", len(micro), console=console, transient=True)
    with torch.no_grad(), contextlib.closing(batches):
        for batch in shown:
            skipped += batch.bad
            if batch.keys:
                moved = batch.to(device)
                out = model(moved.waveforms, moved.num_samples)
                texts = greedy_text(out.logits, out.num_frames, alphabet)
                lines += zip(batch.keys, batch.texts, texts, strict=True)
                seconds += batch.amount / SAMPLE_RATE
    return lines, skipped, seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist evaluate` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("--data", help="folder of shards (default: the run's data.valid)")
    add("--output", metavar="DIR", help="where the results go (default: the run folder)")


def run(args: argparse.Namespace) -> None:
    """Transcribe shards with a fine-tuned model (greedy) and print its error rates: of words where
    its alphabet has words, of letters, of phones. The transcripts go to hypotheses.tsv, the counts
    to evaluation.json.

    example:
      w2v2dist evaluate runs/base_10h --data data/test_clean
      w2v2dist evaluate facebook/wav2vec2-base-960h --data data/test_clean --output base_960h
    """
    given = (args.model, args.data, args.checkpoint, args.output)
    result = evaluate(*given, trust_pickle=args.trust_pickle)
    called = {"wer": "WER", "cer": "letter errors", "per": "PER"}
    rates = [f"{called[k]} {100 * result[k]:.2f} %" for k in called if k in result]
    hours, folder = result["seconds"] / 3600, _output(args.model, args.output)
    console.print(
        f"{'   '.join(rates)}   {result['num_utterances']} utterances, {hours:.2f} h   "
        f"(see {folder}/hypotheses.tsv)"
    )
    if left_out := int(result["num_skipped"]):
        why = most_frequent(read_jsonl(folder / "skipped.jsonl"))
        total = left_out + int(result["num_utterances"])
        console.print(f"{left_out} of {total} utterances were left out: {why}")

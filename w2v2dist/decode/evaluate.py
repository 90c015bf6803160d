"""Transcribe shards with a fine-tuned run and score them."""

import argparse
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

from w2v2dist.config import ConfigError, from_dict, read_yaml
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.batch import Rows, SpeechBatch, core, encode_labels, pad
from w2v2dist.data.batching import validation_batches
from w2v2dist.data.config import DataConfig
from w2v2dist.data.loader import MicroBatches, iterate
from w2v2dist.data.source import open_index
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.decode.scoring import error_counts
from w2v2dist.interop.open import open_model
from w2v2dist.model import Wav2Vec2ForCTC
from w2v2dist.runtime.logging import console


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


def evaluate(run_dir: str, data: str | None = None, which: str = "best") -> dict[str, float]:
    """Word and letter error rates (greedy) of a fine-tuning run's checkpoint on shards (`data`, by
    default the run's data.valid), utterances of any length. Writes evaluation.json and
    hypotheses.tsv (key, reference, hypothesis) to the run folder."""
    folder = Path(run_dir)
    config = from_dict(DataConfig, read_yaml(folder / "config.yaml").get("data", {}), "data.")
    data = data or config.valid
    opened = open_model(folder, which)
    if opened.alphabet is None or not isinstance(opened.module, Wav2Vec2ForCTC):
        raise ConfigError(
            f"{run_dir} is a pre-training, which has no output layer to transcribe with: fine-tune "
            f"it first (w2v2dist train configs/finetune/… pretrained={run_dir})"
        )
    lines, num_bad, seconds = _transcribe(opened.module, opened.alphabet, config, data)
    counts = error_counts([line[1] for line in lines], [line[2] for line in lines])
    if not counts["num_words"]:
        raise ConfigError(
            f"no utterance of {data} has a usable {config.tokens} label ({num_bad} were skipped): "
            "nothing can be scored"
        )
    result = {
        "wer": counts["word_errors"] / max(1, counts["num_words"]),
        "cer": counts["letter_errors"] / max(1, counts["num_letters"]),
        "num_utterances": len(lines),
        "num_skipped": num_bad,
        "seconds": round(seconds, 3),
        **counts,
    }
    rows = "".join("\t".join(line) + "\n" for line in sorted(lines))
    (folder / "hypotheses.tsv").write_text("key\treference\thypothesis\n" + rows, encoding="utf-8")
    record = {"checkpoint": opened.source.name, "data": data, **result}
    (folder / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return result


def _transcribe(
    model: Wav2Vec2ForCTC, alphabet: Alphabet, config: DataConfig, data: str | None
) -> tuple[list[tuple[str, str, str]], int, float]:
    """(key, reference, hypothesis) of usable utterances, how many were not, seconds of audio."""
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
    num_bad, seconds = 0, 0.0
    shown = track(batches, "transcribing", len(micro), console=console, transient=True)
    with torch.no_grad(), contextlib.closing(batches):
        for batch in shown:
            num_bad += len(batch.bad)
            if batch.keys:
                moved = batch.to(device)
                out = model(moved.waveforms, moved.num_samples)
                texts = greedy_text(out.logits, out.num_frames, alphabet)
                lines += zip(batch.keys, batch.texts, texts, strict=True)
                seconds += batch.amount / SAMPLE_RATE
    return lines, num_bad, seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist evaluate` takes."""
    add, which = parser.add_argument, ["best", "latest"]
    add("run", help="run folder of a fine-tuning")
    add("--data", help="folder of shards (default: the run's data.valid)")
    add("--checkpoint", choices=which, default="best", help="which one (default: best)")


def run(args: argparse.Namespace) -> None:
    """Transcribe shards with a fine-tuned run (greedy) and print its error rates; the
    transcripts go to RUN/hypotheses.tsv, the counts to RUN/evaluation.json.

    example:
      w2v2dist evaluate runs/base_10h --data data/test_clean
    """
    result = evaluate(args.run, args.data, args.checkpoint)
    console.print(
        f"WER {100 * result['wer']:.2f} %   letter errors {100 * result['cer']:.2f} %   "
        f"{result['num_utterances']} utterances, {result['seconds'] / 3600:.2f} h   "
        f"(see {args.run}/hypotheses.tsv)"
    )

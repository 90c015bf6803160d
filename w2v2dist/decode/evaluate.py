"""Transcribe shards with a fine-tuned run and score them."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import torch
from rich.progress import track

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError, load_config
from w2v2dist.data.loader import MicroBatches, iterate
from w2v2dist.data.order import validation_batches
from w2v2dist.data.reader import ShardReader
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.decode.scoring import error_counts
from w2v2dist.runtime.logging import console
from w2v2dist.tasks.finetune import FinetuneConfig, FinetuneTask
from w2v2dist.training.loop import open_index


def evaluate(run_dir: str, data: str | None = None, which: str = "best") -> dict[str, float]:
    """Word and letter error rates (greedy) of a fine-tuning run's checkpoint on shards.

    Writes evaluation.json and hypotheses.tsv (key, reference, hypothesis) to the run folder. `data`
    is a folder of shards, by default the run's data.valid. Utterances of any length are decoded.
    """
    folder = Path(run_dir)
    config = load_config(FinetuneConfig, folder / "config.yaml")
    source = checkpoint.find(folder, which)
    task = FinetuneTask(config, skip_pretrained=True)
    checkpoint.load_into(task.model, checkpoint.read_parameters(source), str(source))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.model.to(device).eval()
    index = open_index(data or config.data.valid, "data.valid")
    index.check_shard_sizes()
    micro = validation_batches(index, config.data, crop=False)
    if not micro:
        raise ConfigError(f"the shards {data or config.data.valid} hold no utterances")
    dataset = MicroBatches(
        ShardReader(index, retries=config.data.read_retries, timeout_s=config.data.read_timeout_s),
        task.collate(False),
        with_labels=True,
        normalized=config.data.normalize,
    )
    lines, num_bad, seconds = [], 0, 0.0
    batches = iterate(
        dataset, micro, num_workers=config.data.num_workers, prefetch=2, device=device
    )
    with torch.no_grad(), contextlib.closing(batches):
        for batch in track(
            batches, "transcribing", total=len(micro), console=console, transient=True
        ):
            num_bad += len(batch.bad)
            if not batch.keys:
                continue
            moved = batch.to(device)
            out = model(moved.waveforms, moved.num_samples)
            texts = greedy_text(out.logits, out.num_frames, task.tokenizer)
            lines += list(zip(batch.keys, batch.texts, texts, strict=True))
            seconds += batch.audio_samples / 16_000
    counts = error_counts([line[1] for line in lines], [line[2] for line in lines])
    if not counts["num_words"]:
        raise ConfigError(
            f"no utterance of {data or config.data.valid} has a usable {config.data.tokens} label "
            f"({num_bad} were skipped): nothing can be scored"
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
    record = {"checkpoint": source.name, "data": data or config.data.valid, **result}
    (folder / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist evaluate` takes."""
    parser.add_argument("run", help="run folder of a fine-tuning")
    parser.add_argument("--data", help="folder of shards (default: the run's data.valid)")
    parser.add_argument(
        "--checkpoint", choices=["best", "latest"], default="best", help="which one (default: best)"
    )


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

"""Run folders as trainings write them, without a training: for tests of what reads them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import build_shards

HOSTILE = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=1">\'\u202e&lt;'
)
NAME = "a<b> \"quoted\" & 'more'"


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)


def pretraining(
    folder: Path, steps: int, log_every: int, *, restart_every: int = 0, seed: int = 1
) -> Path:
    """A pre-training of 64 processes as it would be logged: metrics, validation, restarts that
    repeat some steps, an alarm."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "task: pretrain\nmodel: {num_distractors: 100, num_codebooks: 2}\n"
        f"loop: {{max_steps: {steps}}}\nschedule: {{peak_lr: 0.000{seed}}}\n"
    )
    clock, step, size, fails = 1.7e9, 0, 64, restart_every
    events: list[dict[str, Any]] = [{"event": "start", "time": clock, "world_size": size}]
    with (folder / "metrics.jsonl").open("w") as file:
        while step < steps:
            step += log_every
            clock += 0.7 * log_every
            record = _record(rng, step, steps, log_every, size)
            file.write(json.dumps({**record, "time": round(clock, 3)}) + "\n")
            if step % (steps // 20) < log_every:
                clock += 5
                named = {f"valid/{k}": record[k] + 0.1 for k in ("contrastive_loss", "accuracy")}
                file.write(json.dumps({"step": step, **named, "time": clock}) + "\n")
                saved = {"event": "saved", "time": clock, "step": step, "seconds": 9.0}
                events.append({**saved, "pause_seconds": 0.4, "best": True})
            if restart_every and step > fails:
                fails, clock, old = fails + restart_every, clock + 0.02 * steps, size
                size, step = rng.choice([32, 48, 64]), step - step % (steps // 20)
                resumed = {"event": "resumed", "time": clock, "step": step}
                events.append({**resumed, "old_world_size": old, "new_world_size": size})
    alarm = {"event": "alarm", "alarm": "code_collapse", "value": 18.0, "limit": 21.1}
    events.append({**alarm, "time": clock, "step": steps // 2, "action": "log"})
    events.append({"event": "finished", "time": clock, "step": steps})
    write_lines(folder / "events.jsonl", events)
    return folder


def _record(rng: random.Random, step: int, steps: int, every: int, size: int) -> dict[str, Any]:
    """What one interval logs."""
    learned = 1 - math.exp(-8 * step / steps)
    bits = 6.65 - 4.7 * learned + rng.gauss(0, 0.03)
    return {
        "step": step,
        "loss": bits + 0.2,
        "contrastive_loss": bits,
        "diversity_loss": 0.05 + 0.01 * rng.random(),
        "feature_penalty": 0.001 * rng.random(),
        "accuracy": 0.6 * learned + rng.gauss(0, 0.01),
        "code_perplexity": 20 + 240 * learned + rng.gauss(0, 4),
        "prob_perplexity": 20 + 300 * learned + rng.gauss(0, 4),
        "num_masked": 81_000.0,
        "temperature": max(0.1, 2 * 0.999995**step),
        "lr": 3e-4 * min(1, 20 * step / steps) * (1 - step / steps),
        "grad_norm": abs(rng.gauss(0.3, 0.1)),
        "audio_hours": 2.6 * every / 60,
        "seconds": 0.7 * every,
        "data_wait_seconds": 0.02 * every * rng.random(),
        "slowest_rank": rng.randrange(size),
        "slowest_host": f"node{rng.randrange(8)}",
        "slowest_rank_seconds": 0.4 + 0.1 * rng.random(),
        "median_rank_seconds": 0.35,
        "world_size": size,
    }


def finetuning(folder: Path, errors: list[float], speech: Path | None = None) -> Path:
    """A fine-tuning with a validation every 10 steps; with the audio of `speech`, an evaluation."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "task: finetune\nfreeze_steps: 12\nloop: {max_steps: 60}\nmodel: {mask_prob: 0.65}\n"
    )
    records: list[dict[str, Any]] = []
    for i, error in enumerate(errors):
        step = 10 * (i + 1)
        common = {"step": step, "time": 1.7e9 + step}
        train = {"loss": 90.0 * error, "lr": 1e-4, "grad_norm": 5.0 + error, "seconds": 9.0}
        more = {"audio_hours": 0.1, "data_wait_seconds": 0.1, "frozen": float(step <= 12)}
        records.append({**common, **train, **more, "world_size": 1})
        records.append(
            {**common, "valid/loss": 95 * error, "valid/wer": error, "valid/cer": error / 2}
        )
    write_lines(folder / "metrics.jsonl", records)
    start = {"event": "start", "time": 1.7e9, "world_size": 1}
    note = {"event": "note", "time": 1.7e9 + 1, "text": HOSTILE, "nothing": None}
    write_lines(folder / "events.jsonl", [start, note])
    if speech is not None:
        shards = build_shards(speech, folder.parent / f"shards of {folder.name}"[:20].strip())
        evaluation(folder / "evaluations" / "greedy", shards, wrong=2)
        evaluation(folder / "evaluations" / "beam", shards, wrong=1, lm="4gram.arpa (9 bytes, 00)")
    return folder


def evaluation(folder: Path, shards: Path, wrong: int, lm: str | None = None) -> Path:
    """An evaluation that reads `wrong` words of each utterance otherwise, and one text that would
    be a script."""
    from w2v2dist.data.alphabet import alphabet
    from w2v2dist.data.index import ShardIndex
    from w2v2dist.decode.results import Line, score, write

    keys = list(ShardIndex.load(shards).keys())
    said = "ONE TWO THREE FOUR"
    read = " ".join(["SEVEN"] * wrong + said.split()[wrong:])
    lines = [Line(key, said, read, {"seconds": 1.5}) for key in keys]
    lines[0] = Line(keys[0], "ONE TWO שלום FOUR FIVE SIX", HOSTILE, {"seconds": 2.0})
    asked = {
        "decoder": "beam" if lm else "greedy",
        "data": str(shards),
        **({"lm": lm} if lm else {}),
    }
    about = {**score(lines, alphabet("letters")), "num_utterances": len(lines), "num_skipped": 0}
    beam = {"beam": {"beam_size": 50, "lm_weight": 2.0, "word_score": -0.5}} if lm else {}
    write(folder, lines, [], {"data": str(shards), **about, **beam, "asked": asked}, "word")
    return folder


def extremes(size: int, seed: int) -> np.ndarray:
    """Noise with a few spikes."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=size)
    values[rng.integers(size, size=3)] += 100
    return values

"""Beams over a large lexicon on simulated emissions of real sentences: beside torchaudio's
ctc_decoder (the same errors? as fast?), and what each language model brings. Both get the same
input: what Searchable makes of emissions, with a frame more in which the last word may end; a
column has torchaudio's errors without that frame.

    python benchmarks/decoding.py --sentences held.txt --lm 4gram.bin --lexicon lexicon.txt
    python benchmarks/decoding.py ... --beams 50 500 1500 --transformer runs/lm/tiny --dev dev.txt

The emissions are those of benchmarks/simulated.py. Everything runs on one core; torchaudio and ours
take turns, utterance by utterance, so that what else the machine does meets both. With --dev the
weights of each language model are found on other sentences (`--trials`). Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torchaudio.models.decoder import CTCDecoder, ctc_decoder

from benchmarks.simulated import Noise, emission
from w2v2dist.data.alphabet import alphabet
from w2v2dist.decode.beam_config import WEIGHTS, BeamConfig
from w2v2dist.decode.decoders import Decoder, DecodingConfig, make_decoder, reordered
from w2v2dist.decode.scoring import errors
from w2v2dist.decode.searchable import Searchable
from w2v2dist.decode.significance import compare, interval
from w2v2dist.lm.lexicon import Lexicon, read_lexicon

LETTERS = alphabet("letters")
Texts = list[str]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--sentences", type=Path, required=True, help="what is said: a sentence a line")
    add("--lm", type=Path, required=True, help="n-gram of KenLM")
    add("--lexicon", type=Path, required=True)
    add("--transformer", help="run of a Transformer LM, or fairseq's .pt")
    add("--dev", type=Path, help="sentences to find the weights on")
    add("--utterances", type=int, default=100)
    add("--dev-utterances", type=int, default=100)
    add("--timed", type=int, default=20, help="utterances that both decoders take turns with")
    add("--beams", type=int, nargs="+", default=[50, 500])
    add("--second-beam", type=int, default=200, help="readings that the Transformer reads again")
    add("--second-dev", type=int, default=150, help="sentences of --dev for it")
    add("--trials", type=int, default=30)
    for item in dataclasses.fields(Noise):
        add(f"--{item.name.replace('_', '-')}", type=type(item.default), default=item.default)
    return parser.parse_args()


def theirs(args: argparse.Namespace, lexicon: Lexicon, beam: BeamConfig) -> CTCDecoder:
    """torchaudio's decoder with the same settings."""
    names = [f"t{i}" for i in range(LETTERS.num_tokens)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        for word, spellings in lexicon.spellings.items():
            for spelling in spellings:
                file.write(f"{word}\t{' '.join(names[i] for i in spelling)}\n")
        file.flush()
        return ctc_decoder(
            lexicon=file.name,
            tokens=names,
            lm=str(args.lm),
            beam_size=beam.beam_size,
            beam_size_token=min(beam.beam_size_token, len(names)),
            beam_threshold=beam.beam_threshold,
            lm_weight=beam.lm_weight,
            word_score=beam.word_score,
            blank_token=names[LETTERS.blank],
            sil_token=names[LETTERS.delimiter or 0],
        )


def side_by_side(args: argparse.Namespace, said: Texts, emissions: list[np.ndarray]) -> None:
    """Errors and speed of ours and of torchaudio's, of the same emissions."""
    lexicon = read_lexicon(args.lexicon, LETTERS)
    columns = "beam|WER: ours|torchaudio|other texts|without the end frame|utterances/s: ours"
    print(f"|{columns}|torchaudio|ratio|\n|{'-|' * 8}")
    ours = make_decoder(_config(str(args.lm), args.lexicon), LETTERS, torch.device("cpu"))
    ready = Searchable(LETTERS, lexicon)
    _ours(ours, emissions[0], BeamConfig(beam_size=1))  # the trie is made
    for size in args.beams:
        beam = BeamConfig(beam_size=size)
        reference = theirs(args, lexicon, beam)
        texts: tuple[Texts, Texts] = ([], [])
        seconds: tuple[list[float], list[float]] = ([], [])
        timed = emissions[: args.timed]
        for number, values in enumerate(timed):
            one = torch.from_numpy(ready.ready(values))[None]
            calls: list[Callable[[], list[str]]] = [
                functools.partial(_ours, ours, values, beam),
                functools.partial(_theirs, reference, one),
            ]
            for which in (0, 1) if number % 2 else (1, 0):
                started = time.perf_counter()
                texts[which].append(" ".join(calls[which]()))
                seconds[which].append(time.perf_counter() - started)
        rates = [_rate(said[: args.timed], found) for found in texts]
        speeds = [len(s) / sum(s) for s in seconds]
        ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        plain = [" ".join(_theirs(reference, torch.from_numpy(e)[None])) for e in timed]
        other = sum(a != b for a, b in zip(*texts, strict=True))
        print(f"| {size} | {rates[0]:.2f} % | {rates[1]:.2f} % | {other} | "
            f"{_rate(said[: args.timed], plain):.2f} % | {speeds[0]:.2f} | "
              f"{speeds[1]:.2f} | {ratio:.2f} |", flush=True)  # fmt: skip


def _ours(decoder: Decoder, values: np.ndarray, beam: BeamConfig) -> list[str]:
    return [*next(iter(decoder.decode([values], beam)))[0].words]


def _theirs(decoder: CTCDecoder, values: torch.Tensor) -> list[str]:
    return list(decoder(values)[0][0].words)


def _config(lm: str, lexicon: Path | None) -> DecodingConfig:
    return DecodingConfig(decoder="beam", lm=lm, lexicon=lexicon and str(lexicon), num_workers=1)


def _rate(said: Texts, found: Texts) -> float:
    counted = errors(said, found, "word")
    return 100 * sum(e.total for e in counted) / sum(e.num_units for e in counted)


def tuned(decoder: Decoder, beam: BeamConfig, said: Texts, emissions: list[np.ndarray],
          trials: int) -> BeamConfig:  # fmt: skip
    """The beam with the best weights on these."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    study.enqueue_trial({"lm_weight": beam.lm_weight, "word_score": beam.word_score})

    def objective(trial: optuna.Trial) -> float:
        names = ("lm_weight", "word_score")
        weights = {name: trial.suggest_float(name, *WEIGHTS[name]) for name in names}
        found = decoder.decode(emissions, dataclasses.replace(beam, **weights))
        return _rate(said, [LETTERS.decode(h[0].path) for h in found])

    study.optimize(objective, trials)
    return dataclasses.replace(beam, **study.best_params)


def in_order(args: argparse.Namespace, said: Texts, emissions: list[np.ndarray]) -> None:
    """Greedy, the n-gram and the Transformer, each with its interval, and what tells it from the
    one before."""
    dev = args.dev.read_text(encoding="utf-8").splitlines()[: args.dev_utterances]
    noise = _noise(args)
    heard = [emission(text, 10**6 + i, LETTERS, noise) for i, text in enumerate(dev)]
    print("\n| decoder | LM weight, word score | WER (95 %) | less than the one before | p |")
    print("|-|-|-|-|-|")
    greedy = [LETTERS.decode(e.argmax(-1).tolist()) for e in emissions]
    before = _row("greedy", "", said, greedy, None)
    kinds = [(f"n-gram, beam {args.beams[-1]}", str(args.lm), args.beams[-1], args.beams[0])]
    if args.transformer:
        kinds.append(("Transformer, beam 50", args.transformer, 50, 50))
    for name, lm, size, tuning_size in kinds:
        decoder = make_decoder(_config(lm, args.lexicon), LETTERS, torch.device("cpu"))
        beam = tuned(decoder, BeamConfig(beam_size=tuning_size), dev, heard, args.trials)
        beam = dataclasses.replace(beam, beam_size=size)
        started = time.perf_counter()
        found = [LETTERS.decode(h[0].path) for h in decoder.decode(emissions, beam)]
        speed = len(found) / (time.perf_counter() - started)
        weights = f"{beam.lm_weight:.2f}, {beam.word_score:.2f}"
        before = _row(f"{name} ({speed:.2f} utterances/s)", weights, said, found, before)


def second_pass(args: argparse.Namespace, said: Texts, emissions: list[np.ndarray]) -> None:
    """The n-gram's best readings in its own order and with the Transformer's opinion, the weights
    of both found on the readings of other sentences."""
    dev = args.dev.read_text(encoding="utf-8").splitlines()[: args.second_dev]
    heard = [emission(text, 10**6 + i, LETTERS, _noise(args)) for i, text in enumerate(dev)]
    beam = BeamConfig(beam_size=args.second_beam)
    config = dataclasses.replace(
        _config(str(args.lm), args.lexicon), decoder="rescore", rescore_lm=args.transformer
    )
    decoder = make_decoder(config, LETTERS, torch.device("cpu"))
    lists = [[*decoder.decode(e, beam, beam.beam_size)] for e in (heard, emissions)]

    def texts(which: int, weights: dict[str, float]) -> Texts:
        found = dataclasses.replace(beam, **{"rescore_weight": 0.0, **weights})
        return [LETTERS.decode(reordered(readings, found)[0].path) for readings in lists[which]]

    before = None
    for name, names in (
        (f"n-gram, beam {beam.beam_size}", ("lm_weight", "word_score")),
        ("the same, and the Transformer", ("lm_weight", "word_score", "rescore_weight")),
    ):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
        study.optimize(
            lambda trial, names=names: _rate(
                dev, texts(0, {n: trial.suggest_float(n, *WEIGHTS[n]) for n in names})
            ),
            128,
        )
        shown = ", ".join(f"{study.best_params[n]:.2f}" for n in names)
        before = _row(name, shown, said, texts(1, study.best_params), before)


def _row(name: str, weights: str, said: Texts, found: Texts, before: list[int] | None) -> list[int]:
    counted = errors(said, found, "word")
    lost, units = [e.total for e in counted], [e.num_units for e in counted]
    low, high = interval(lost, units)
    less = "|"
    if before is not None:
        better = compare(before, lost, units)
        less = (
            f"{100 * better.difference:.2f} ({100 * better.low:.2f} to {100 * better.high:.2f}) | "
            f"{better.p_value:.4f}"
        )
    rate = 100 * sum(lost) / sum(units)
    print(f"| {name} | {weights} | {rate:.2f} % ({100 * low:.2f} to {100 * high:.2f}) | {less} |",
          flush=True)  # fmt: skip
    return lost


def _noise(args: argparse.Namespace) -> Noise:
    return Noise(**{item.name: getattr(args, item.name) for item in dataclasses.fields(Noise)})


def main() -> None:
    """Simulate, decode, print."""
    args = parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    said = args.sentences.read_text(encoding="utf-8").splitlines()[: args.utterances]
    noise = _noise(args)
    emissions = [emission(text, i, LETTERS, noise) for i, text in enumerate(said)]
    frames = statistics.mean(map(len, emissions))
    words = sum(len(text.split()) for text in said)
    print(f"{len(said)} sentences, {words} words, {frames:.0f} frames each; {noise}\n")
    side_by_side(args, said, emissions)
    if args.dev:
        in_order(args, said, emissions)
        if args.transformer:
            second_pass(args, said, emissions)


if __name__ == "__main__":
    main()

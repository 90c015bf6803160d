"""`w2v2dist export`: any model for another library."""

import argparse

from w2v2dist.config import ConfigError
from w2v2dist.interop import save_fairseq, save_huggingface, save_torchaudio
from w2v2dist.interop.open import model_arguments, opened_from
from w2v2dist.runtime.logging import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist export` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("--format", required=True, choices=["fairseq", "huggingface", "torchaudio"], help="below")
    add("--output", required=True, metavar="PATH", help="what is written; must be new")


def run(args: argparse.Namespace) -> None:
    """Write a model for another library: a run of any ZeRO stage, or what another library wrote; no
    GPU needed.

    example:
      w2v2dist export runs/base_10h --format huggingface --output exported/base_10h

    formats:
      fairseq      PATH is a .pt file with fairseq's keys and configuration; of a CTC model its
                   dictionary stands beside it (dict.ltr.txt, of phones dict.phn.txt)
      huggingface  PATH is a folder for Wav2Vec2ForCTC (or Wav2Vec2ForPreTraining, or
                   Wav2Vec2Model) and Wav2Vec2Processor.from_pretrained
      torchaudio   PATH is a state dict for torchaudio.models.wav2vec2_model, whose
                   arguments are in PATH.json; of a pre-training run the body alone
    """
    opened = opened_from(args)
    for note in opened.notes:
        console.print(f"note: {note}")
    if args.format == "torchaudio":
        save_torchaudio(opened.module, args.output)
    else:
        if opened.kind == "ctc" and opened.alphabet is None:
            raise ConfigError(
                f"{opened.source} is on an alphabet that is not known, without which its outputs "
                "mean nothing: put its vocab.json (fairseq: dict.ltr.txt) beside it"
            )
        if opened.normalize is None:
            raise ConfigError(
                f"{opened.source} does not say whether its audio was normalised: import it with "
                "--config, a YAML file with `data: {normalize: true}` or false, and export that"
            )
        save = {"fairseq": save_fairseq, "huggingface": save_huggingface}[args.format]
        tokens = opened.alphabet or "letters"
        save(opened.module, args.output, normalize=opened.normalize, tokens=tokens)
    console.print(f"wrote {args.output} from {opened.source}")

"""`w2v2dist export`: a run's model for another library."""

import argparse

from w2v2dist.interop import save_fairseq, save_huggingface, save_torchaudio
from w2v2dist.interop.open import open_model
from w2v2dist.runtime.logging import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist export` takes."""
    add = parser.add_argument
    add("run", help="run folder, or one of its checkpoints/step_* folders")
    add("--format", required=True, choices=["fairseq", "huggingface", "torchaudio"], help="below")
    add("--output", required=True, metavar="PATH", help="what is written; must be new")
    add("--checkpoint", choices=["best", "latest"], help="which one (default: best, else latest)")


def run(args: argparse.Namespace) -> None:
    """Write a run's model for another library; a run of any ZeRO stage, no GPU needed.

    example:
      w2v2dist export runs/base_10h --format huggingface --output exported/base_10h

    formats:
      fairseq      PATH is a .pt file with fairseq's keys and configuration
      huggingface  PATH is a folder for Wav2Vec2ForCTC (or Wav2Vec2ForPreTraining) and
                   Wav2Vec2Processor.from_pretrained
      torchaudio   PATH is a state dict for torchaudio.models.wav2vec2_model, whose
                   arguments are in PATH.json; of a pre-training run the body alone
    """
    opened = open_model(args.run, args.checkpoint)
    if args.format == "torchaudio":
        save_torchaudio(opened.module, args.output)
    else:
        save = {"fairseq": save_fairseq, "huggingface": save_huggingface}[args.format]
        save(opened.module, args.output, normalize=opened.normalize, tokens=opened.tokens)
    console.print(f"wrote {args.output} from {opened.source}")

"""Rates of decoding for benchmarks/gpu.py, on the GPU where there is one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.simulated import Noise, emission
from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.config import DataConfig
from w2v2dist.data.vocabulary import Vocabulary
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.decoders import BestPath, DecodingConfig, make_decoder
from w2v2dist.decode.emissions import kept_emissions
from w2v2dist.decode.language_models import LanguageModel
from w2v2dist.decode.transformer_beam import TransformerBeam
from w2v2dist.interop import open_model, save_huggingface
from w2v2dist.lm.lexicon import Lexicon
from w2v2dist.model import Wav2Vec2ForCTC
from w2v2dist.model.language_model import LanguageModelConfig, TransformerLanguageModel
from w2v2dist.runtime.distributed import World
from w2v2dist.tasks.train import read_config

LETTERS = alphabet("letters")
SENTENCES = ["THE CAT SAT ON THE MAT", "A CAT ATE THE RAT", "THE RAT SAT", "A MAT IS FLAT"]
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny_pretrain.yaml"


def decode_rates(shards: Path, count: int) -> dict[str, Any]:
    """Utterances a second of a small model of random weights on `shards`, and of the decoders on
    `count` simulated utterances."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    config = read_config(CONFIG, []).model
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(Wav2Vec2ForCTC(config, LETTERS.num_tokens), Path(folder) / "model")
        opened = open_model(Path(folder) / "model")
        world = World(rank=0, size=1, local_rank=0, device=device)
        where = (DataConfig(num_workers=2), str(shards), Path(folder) / "kept", world)
        started = time.perf_counter()
        found = kept_emissions(opened, *where)
        seconds = time.perf_counter() - started
        rows = [{"what": "log-probabilities of the tiny model", "per_second": len(found) / seconds}]
    texts = [SENTENCES[i % len(SENTENCES)] for i in range(count)]
    heard = [emission(text, i, LETTERS, Noise(strength=6)) for i, text in enumerate(texts)]
    beam = BeamConfig(beam_size=50, lm_weight=1.0)
    searcher = make_decoder(DecodingConfig(decoder="beam", num_workers=1), LETTERS, device)
    decoders: dict[str, Callable[[], Iterable[Any]]] = {
        "greedy": lambda: BestPath().decode(heard, beam),
        "beam 50 without a language model": lambda: searcher.decode(heard, beam),
        "beam 50 with a small Transformer": lambda: _transformer(device).decode(heard, beam),
    }
    for name, run in decoders.items():
        started = time.perf_counter()
        number = sum(1 for _ in run())
        rows.append({"what": name, "per_second": number / (time.perf_counter() - started)})
    searcher.close()
    return {"device": str(device), "simulated": count, "rows": rows}


def _transformer(device: torch.device) -> TransformerBeam:
    """A beam with a model of words of random weights."""
    words = tuple(dict.fromkeys(" ".join(SENTENCES).split()))
    vocabulary = Vocabulary(symbols=words, counts=(1,) * len(words), units="words")
    config = LanguageModelConfig(num_layers=2, embed_dim=64, ffn_dim=128, num_heads=2)
    module = TransformerLanguageModel(config, len(vocabulary)).eval().to(device)
    lexicon = Lexicon.from_words(words, LETTERS)
    lm = LanguageModel(name="small", lexicon=lexicon, module=module, vocabulary=vocabulary)
    return TransformerBeam(LETTERS, lm, device)

"""What a process computes for one micro-batch of a configuration, at most, as a graph."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from w2v2dist.config import ConfigError
from w2v2dist.data.vocabulary import read_vocabulary
from w2v2dist.jobs.fusion import fused
from w2v2dist.jobs.graph import Graph, Operator, sizes_of, trace
from w2v2dist.jobs.meta import fake
from w2v2dist.model import (
    TransformerLanguageModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPretraining,
)
from w2v2dist.model.ctc import ctc_loss
from w2v2dist.model.language_model import LanguageModelConfig
from w2v2dist.model.masking import span_mask
from w2v2dist.tasks.finetune import FinetuneConfig
from w2v2dist.tasks.language_model import LanguageModelingConfig
from w2v2dist.tasks.pretrain import PretrainConfig

Config = PretrainConfig | FinetuneConfig | LanguageModelingConfig
Made = tuple[nn.Module, Callable[[], Tensor]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_TOKENS = 32  # of an alphabet: its size does not matter here


@dataclass(frozen=True, slots=True)
class _Key:
    """All that a micro-batch's graph depends on."""

    model: Wav2Vec2Config | LanguageModelConfig
    task: str
    num_rows: int
    length: int  # samples or tokens of a row
    precision: str
    frozen: bool  # the feature encoder
    num_words: int


@dataclass(frozen=True, slots=True)
class Work:
    """A micro-batch: its graph, the parameters' sizes, samples or tokens, and what is assumed."""

    graph: Graph
    kernels: list[Operator]
    sizes: tuple[int, ...]
    amount: int
    note: str


def work_of(config: Config, *, gpu: bool, compiled: bool = False) -> Work:
    """The fullest micro-batch of a configuration: data.max_samples_per_slot samples in as many rows
    as data.max_crop asks for, nothing padded, no layer dropped. ConfigError where a row has fewer
    than two frames, or a vocabulary too few words."""
    if isinstance(config, LanguageModelingConfig):
        return _of_texts(config, gpu, compiled)
    data, model = config.data, config.model
    num_rows = -(-data.max_samples_per_slot // data.max_crop)
    length = data.max_samples_per_slot // num_rows
    length -= length % data.crop_multiple
    if (frames := model.num_frames(length)) < 2:
        raise ConfigError(
            f"data.max_crop is {data.max_crop} and data.max_samples_per_slot "
            f"{data.max_samples_per_slot}: a row of {length} samples has {frames} frames, and two "
            f"are needed: set data.max_crop to {2 * model.receptive_field} or more"
        )
    frozen = isinstance(config, FinetuneConfig) and config.freeze_feature_encoder
    key = _Key(model, config.task, num_rows, length, config.engine.precision, frozen, 0)
    found = _traced(key, gpu)
    return Work(found, _kernels(key, gpu, compiled), found.sizes, num_rows * length, "")


def _of_texts(config: LanguageModelingConfig, gpu: bool, compiled: bool) -> Work:
    """The rarer words' clusters cost next to nothing, as few targets are in them, but they have
    parameters: the graph is of a model with the first cluster alone."""
    data, (num_words, note) = config.data, _num_words(config)
    with fake(gpu):
        module = TransformerLanguageModel(config.model, num_words)
        first, sizes = module.words.bounds[1], sizes_of(module)
    num_rows = -(-data.max_tokens_per_slot // data.max_tokens)
    length = data.max_tokens_per_slot // num_rows
    model = dataclasses.replace(config.model, cutoffs=())
    key = _Key(model, config.task, num_rows, length, config.engine.precision, False, first)
    kernels = _kernels(key, gpu, compiled)
    return Work(_traced(key, gpu), kernels, sizes, num_rows * length, note)


def _num_words(config: LanguageModelingConfig) -> tuple[int, str]:
    """Ids of the vocabulary, and a note where that is not made yet: two fifths more than the last
    cut-off, as in the paper's model."""
    path = Path(config.data.vocabulary)
    if config.data.vocabulary != "auto" and path.is_file():
        return len(read_vocabulary(path, config.data.units)), ""
    number = (config.model.cutoffs or (10_000,))[-1] * 7 // 5
    return number, f"; a vocabulary of {number:,} {config.data.units} ASSUMED"


@functools.lru_cache(maxsize=16)
def _traced(key: _Key, gpu: bool) -> Graph:
    makers = {"pretrain": _pretraining, "finetune": _finetuning, "language_model": _texts}
    return trace(functools.partial(makers[key.task], key), gpu=gpu)


@functools.lru_cache(maxsize=16)
def _kernels(key: _Key, gpu: bool, compiled: bool) -> list[Operator]:
    operators = _traced(key, gpu).operators
    return fused(operators) if compiled else operators


@contextlib.contextmanager
def _default_dtype(precision: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[precision])
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _pretraining(key: _Key) -> Made:
    config = key.model
    assert isinstance(config, Wav2Vec2Config)
    with _default_dtype(key.precision):
        model = Wav2Vec2ForPretraining(config)
    num_frames = config.num_frames(key.length)
    drawn = span_mask(np.random.default_rng(0), num_frames, key.num_rows, config)
    num_masked = int(drawn[0].sum())
    waveforms = torch.empty(key.num_rows, key.length)
    mask = torch.empty(key.num_rows, num_frames, dtype=torch.bool)
    shape = (key.num_rows, num_masked, config.num_distractors)
    distractors = torch.empty(shape, dtype=torch.int64)

    def run() -> Tensor:
        out = model(
            waveforms,
            mask,
            distractors,
            temperature=config.temperature.start,
            drop_layers=[False] * config.num_layers,
            all_features=False,
        )
        assert out.loss is not None
        return out.loss / num_masked  # type: ignore[no-any-return]

    return model, run


def _finetuning(key: _Key) -> Made:
    config = key.model
    assert isinstance(config, Wav2Vec2Config)
    with _default_dtype(key.precision):
        model = Wav2Vec2ForCTC(config, NUM_TOKENS)
    model.freeze_feature_encoder = key.frozen
    waveforms = torch.empty(key.num_rows, key.length)
    mask = None
    if config.mask_prob > 0:
        shape = (key.num_rows, config.num_frames(key.length))
        mask = torch.empty(shape, dtype=torch.bool)

    def run() -> Tensor:
        drop = [False] * config.num_layers
        out = model(waveforms, mask=mask, drop_layers=drop)
        none = torch.empty(0, dtype=torch.int64)
        return ctc_loss(out.logits, out.num_frames, none, none)

    return model, run


def _texts(key: _Key) -> Made:
    assert isinstance(key.model, LanguageModelConfig)
    with _default_dtype(key.precision):
        model = TransformerLanguageModel(key.model, key.num_words)
    tokens = torch.empty(key.num_rows, key.length, dtype=torch.int64)
    return model, lambda: model(tokens, tokens).sum()

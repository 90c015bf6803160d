"""Which modules torch.compile takes as a whole, and what hooks see of them."""

from __future__ import annotations

import pytest
from torch import nn

from tests.distributed.processes import MODEL
from w2v2dist.model import TransformerLanguageModel, Wav2Vec2Config, Wav2Vec2ForPretraining
from w2v2dist.model.language_model import LanguageModelConfig
from w2v2dist.training.compiled import BLOCKS, units


def speech() -> nn.Module:
    return Wav2Vec2ForPretraining(Wav2Vec2Config(**MODEL))  # type: ignore[arg-type]


def words() -> nn.Module:
    config = LanguageModelConfig(num_layers=2, embed_dim=16, ffn_dim=16, num_heads=2)
    return TransformerLanguageModel(config, 50)


@pytest.mark.parametrize(("make", "num_blocks"), [(speech, 1 + MODEL["num_layers"]), (words, 2)])
def test_units_have_every_parameter_once_and_blocks_whole(make: object, num_blocks: int) -> None:
    model = make()  # type: ignore[operator]
    found = dict(units(model))
    parameters = [p for own in found.values() for p in own]
    assert len(parameters) == len({id(p) for p in parameters})
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    blocks = [module for module in found if isinstance(module, BLOCKS)]
    assert len(blocks) == num_blocks
    inside = {m for block in blocks for m in block.modules() if m is not block}
    assert not inside & found.keys()

"""Checkpoints from fairseq."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForPretraining

# fairseq's names, in the order in which they are replaced
_FAIRSEQ_NAMES = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"encoder.feature_encoder.layers.\1.0."),
    # group norm is entry 2; layer norm is entry 2.1, between two transpositions
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"encoder.feature_encoder.layers.\1.1."),
    (r"^(post_extract_proj|project_inp)\.", "encoder.feature_projection."),
    (r"^mask_emb$", "encoder.mask_embedding"),
    (r"^layer_norm\.", "encoder.#norm."),
    (r"^encoder\.pos_conv\.0\.", "encoder.context_network.positions."),
    (r"^encoder\.layer_norm\.", "encoder.context_network.norm."),
    (r"^encoder\.layers\.", "encoder.context_network.layers."),
    (r"#norm", "layer_norm"),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".attention_norm."),
    (r"\.final_layer_norm\.", ".final_norm."),
    (r"\.fc1\.", ".ffn_in."),
    (r"\.fc2\.", ".ffn_out."),
    (r"^project_q\.", "target_projection."),
    (r"^final_proj\.", "context_projection."),
    (r"^input_quantizer\.", "encoder.input_quantizer."),
    (r"quantizer\.weight_proj\.", "quantizer.projection."),
    (r"quantizer\.vars$", "quantizer.codebooks"),
)


def fairseq_name(name: str) -> str:
    """Our parameter's name for the name of one in a fairseq wav2vec 2.0 model."""
    for pattern, replacement in _FAIRSEQ_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_fairseq(
    path_or_state_dict: str | Path | Mapping[str, Tensor], config: Wav2Vec2Config | None = None
) -> Wav2Vec2ForPretraining:
    """A pre-training model with the weights of a fairseq checkpoint (file or state dict).

    Raises ValueError where `config` is missing or does not fit the weights, or the file is no
    fairseq checkpoint.
    """
    if config is None:
        raise ValueError(
            "the configuration is not read from checkpoints: pass config=Wav2Vec2Config(…)"
        )
    state = path_or_state_dict
    if isinstance(state, (str, Path)):
        state = _read(Path(state))
    shape = (config.num_codebooks, config.num_codebook_entries, -1)
    renamed = {fairseq_name(name): tensor for name, tensor in state.items()}
    renamed = {n: t.view(shape) if n.endswith("codebooks") else t for n, t in renamed.items()}
    projection = "encoder.feature_projection"
    if f"{projection}.weight" not in renamed:  # fairseq leaves it out where it changes no width
        renamed[f"{projection}.weight"] = torch.eye(config.embed_dim)
        renamed[f"{projection}.bias"] = torch.zeros(config.embed_dim)
    model = Wav2Vec2ForPretraining(config)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ValueError(f"the fairseq weights do not fit the configuration: {error}") from None
    return model


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} cannot be read without running its code: {error}") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise ValueError(f"{path} is not a fairseq checkpoint: it has no entry 'model'")
    weights: dict[str, Tensor] = checkpoint["model"]
    return weights

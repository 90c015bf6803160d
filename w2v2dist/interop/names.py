"""Parameters and settings here, in fairseq, Hugging Face and torchaudio: tables read both ways."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from w2v2dist.config import from_dict
from w2v2dist.model import Wav2Vec2Config

Library = Literal["fairseq", "huggingface", "torchaudio"]
_COLUMNS = {"ours": 0, "fairseq": 1, "huggingface": 2, "torchaudio": 3}

# Parameters: ours (below `encoder.`), fairseq's, Hugging Face's (below `wav2vec2.`). A name with a
# dot at its end is the start of names, # a number; what is indented follows the last with a number.
_BODY = """
feature_encoder.layers.#.    feature_extractor.conv_layers.#.  feature_extractor.conv_layers.#.
    0.                           0.                                conv.
    1.                           2.                                layer_norm.
layer_norm.                  layer_norm.                       feature_projection.layer_norm.
feature_projection.          post_extract_proj.                feature_projection.projection.
input_quantizer.projection.  input_quantizer.weight_proj.      -
input_quantizer.codebooks    input_quantizer.vars              -
mask_embedding               mask_emb                          masked_spec_embed
context_network.positions.   encoder.pos_conv.0.               encoder.pos_conv_embed.conv.
context_network.norm.        encoder.layer_norm.               encoder.layer_norm.
context_network.layers.#.    encoder.layers.#.                 encoder.layers.#.
    attention.                   self_attn.                        attention.
    attention_norm.              self_attn_layer_norm.             layer_norm.
    ffn_in.                      fc1.                              feed_forward.intermediate_dense.
    ffn_out.                     fc2.                              feed_forward.output_dense.
    final_norm.                  final_layer_norm.                 final_layer_norm.
"""
# The same for what stands on the body, and torchaudio's
_HEADS = """
quantizer.projection.        quantizer.weight_proj.            quantizer.weight_proj.           -
quantizer.codebooks          quantizer.vars                    quantizer.codevectors            -
target_projection.           project_q.                        project_q.                       -
context_projection.          final_proj.                       project_hid.                     -
token_projection.            proj.                             lm_head.                         aux.
"""
# Spellings of the libraries that vary, and how the tables have them
_SPELLINGS = (
    (r"^((w2v_)?encoder\.w2v_model|w2v_encoder|w2v_model)\.", ""),  # fine-tuned by fairseq
    (r"^(feature_extractor\.conv_layers\.\d+\.2\.)1\.", r"\1"),  # between two transpositions
    (r"^project_inp\.", "post_extract_proj."),  # of quantized inputs
    (r"^wav2vec2\.mask_time_emb_vector$", "wav2vec2.masked_spec_embed"),  # of old transformers
    (r"\.conv\.parametrizations\.weight\.original0$", ".conv.weight_g"),
    (r"\.conv\.parametrizations\.weight\.original1$", ".conv.weight_v"),
)
# Settings: ours, fairseq's, Hugging Face's, torchaudio's (below `encoder_`)
_SETTINGS = """
num_layers            encoder_layers           num_hidden_layers               num_layers
embed_dim             encoder_embed_dim        hidden_size                     embed_dim
ffn_dim               encoder_ffn_embed_dim    intermediate_size               ff_interm_features
num_heads             encoder_attention_heads  num_attention_heads             num_heads
norm_first            layer_norm_first         do_stable_layer_norm            layer_norm_first
pos_conv_kernel       conv_pos                 num_conv_pos_embeddings         pos_conv_kernel
pos_conv_groups       conv_pos_groups          num_conv_pos_embedding_groups   pos_conv_groups
dropout               dropout                  hidden_dropout                  dropout
attention_dropout     attention_dropout        attention_dropout               attention_dropout
activation_dropout    activation_dropout       activation_dropout              ff_interm_dropout
input_dropout         dropout_input            feat_proj_dropout               projection_dropout
layer_drop            encoder_layerdrop        layerdrop                       layer_drop
feature_dropout       dropout_features         feat_quantizer_dropout          -
feature_grad_mult     feature_grad_mult        -                               -
num_codebooks         latent_groups            num_codevector_groups           -
num_codebook_entries  latent_vars              num_codevectors_per_group       -
final_dim             final_dim                proj_codevector_dim             -
quantize_inputs       quantize_input           -                               -
quantize_targets      quantize_targets         -                               -
mask_prob             mask_prob                mask_time_prob                  -
mask_span_length      mask_length              mask_time_length                -
min_mask_spans        -                        mask_time_min_masks             -
channel_mask_prob     mask_channel_prob        mask_feature_prob               -
channel_mask_length   mask_channel_length      mask_feature_length             -
num_distractors       num_negatives            num_negatives                   -
logit_temperature     logit_temp               contrastive_logits_temperature  -
diversity_weight      -                        diversity_loss_weight           -
"""
_EXTRACTOR_NORMS = {
    "fairseq": ("extractor_mode", {"group": "default", "layer": "layer_norm"}),
    "huggingface": ("feat_extract_norm", {"group": "group", "layer": "layer"}),
    "torchaudio": ("extractor_mode", {"group": "group_norm", "layer": "layer_norm"}),
}
_CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")  # Hugging Face's
_TEMPERATURE = ("start", "floor", "decay")  # the order of fairseq's latent_temp
# What our model always is; another value is another architecture
_FIXED: dict[str, dict[str, Any]] = {
    "fairseq": {"activation_fn": "gelu", "target_glu": False, "same_quantizer": False},
    "huggingface": {
        "model_type": "wav2vec2", "hidden_act": "gelu", "feat_extract_activation": "gelu",
        "layer_norm_eps": 1e-5, "add_adapter": False, "adapter_attn_dim": None,
    },
    "torchaudio": {},
}  # fmt: skip


def _name_rows() -> Iterator[tuple[str, ...]]:
    stems: list[str] = []
    for line in _BODY.strip().split("\n"):
        columns = line.split()
        if line.startswith(" "):
            columns = [stem + column for stem, column in zip(stems, columns, strict=True)]
        elif columns[0].endswith("#."):
            stems = columns
            continue
        ours, fairseq, hf = columns
        torchaudio = re.sub("^(feature_projection)", r"encoder.\1", hf)
        torchaudio = re.sub("^encoder.(?!feature_projection)", "encoder.transformer.", torchaudio)
        if hf in ("-", "masked_spec_embed"):
            torchaudio = "-"
        yield f"encoder.{ours}", fairseq, "-" if hf == "-" else f"wav2vec2.{hf}", torchaudio
    yield from (tuple(line.split()) for line in _HEADS.strip().split("\n"))


_NAME_ROWS = list(_name_rows())
_SETTING_ROWS = [
    (ours, fairseq, hf, "-" if torchaudio == "-" else f"encoder_{torchaudio}")
    for ours, fairseq, hf, torchaudio in map(str.split, _SETTINGS.strip().split("\n"))
] + [("conv_bias", "conv_bias", "conv_bias", "extractor_conv_bias")]


def _translate(name: str, source: str, target: str) -> str | None:
    """A parameter's name in another column of the table; None where it has none there."""
    for row in _NAME_ROWS:
        old, new = row[_COLUMNS[source]], row[_COLUMNS[target]]
        pattern = re.escape(old).replace(r"\#", r"(\d+)") + ("" if old.endswith(".") else "$")
        if match := re.match(pattern, name):
            number = match[1] if match.groups() else ""
            return None if new == "-" else new.replace("#", number) + name[match.end() :]
    return None


def our_name(name: str, library: Library) -> str:
    """Our name of the library's parameter; the name itself where we have no such parameter."""
    spelled = name
    for pattern, replacement in _SPELLINGS:
        spelled = re.sub(pattern, replacement, spelled)
    return _translate(spelled, library, "ours") or name


def fairseq_name(name: str) -> str:
    """Our parameter's name for the name of one in a fairseq wav2vec 2.0 model."""
    return our_name(name, "fairseq")


def their_name(name: str, library: Library, config: Wav2Vec2Config, ctc: bool) -> str | None:
    """The name of our parameter in the library's files (`ctc`: fine-tuned); None: it has none."""
    theirs = _translate(name, "ours", library)
    if theirs is None:
        return None
    if library != "fairseq":
        theirs = theirs.replace(".conv.weight_g", ".conv.parametrizations.weight.original0")
        return theirs.replace(".conv.weight_v", ".conv.parametrizations.weight.original1")
    if config.extractor_norm == "layer":
        theirs = re.sub(r"^(feature_extractor\.conv_layers\.\d+\.2\.)", r"\g<1>1.", theirs)
    if config.quantize_inputs:
        theirs = theirs.replace("post_extract_proj.", "project_inp.")
    if ctc and name.startswith("encoder."):
        return f"w2v_encoder.w2v_model.{theirs}"
    return f"w2v_encoder.{theirs}" if name.startswith("token_projection.") else theirs


def their_settings(config: Wav2Vec2Config, library: Library) -> dict[str, Any]:
    """Our configuration as the library spells it."""
    (key, norms), column = _EXTRACTOR_NORMS[library], _COLUMNS[library]
    out = {row[column]: getattr(config, row[0]) for row in _SETTING_ROWS if row[column] != "-"}
    out |= {key: norms[config.extractor_norm], **_FIXED[library]}
    convolutions = zip(config.conv_kernels, config.conv_strides, strict=True)
    layers = [(config.conv_channels, kernel, stride) for kernel, stride in convolutions]
    if library == "fairseq":
        latent_temp = [getattr(config.temperature, name) for name in _TEMPERATURE]
        return out | {"conv_feature_layers": str(layers), "latent_temp": latent_temp}
    if library == "torchaudio":
        return out | {"extractor_conv_layer_config": layers}
    out |= zip(_CONVOLUTIONS, map(list, zip(*layers, strict=True)), strict=True)
    return out | {"num_feat_extract_layers": len(layers), "codevector_dim": config.final_dim}


def our_config(settings: Mapping[str, Any], library: Library, source: str) -> Wav2Vec2Config:
    """The library's settings as ours, defaults where it has none. Raises ValueError, which names
    `source`, for another architecture and for settings that cannot be read."""
    for name, value in _FIXED[library].items():
        if settings.get(name, value) != value:
            raise ValueError(
                f"{source} is of another architecture: {name} is {settings[name]!r} but must be "
                f"{value!r}, the only one that this model has"
            )
    (key, norms), column = _EXTRACTOR_NORMS[library], _COLUMNS[library]
    known = {row[0]: settings.get(row[column]) for row in _SETTING_ROWS}
    values = {name: value for name, value in known.items() if value is not None}
    try:
        if library == "fairseq":
            layers = _literal(settings["conv_feature_layers"])
            temperature = _literal(settings.get("latent_temp", [2, 0.5, 0.999995]))
            values["temperature"] = dict(zip(_TEMPERATURE, temperature, strict=True))
            values["final_dim"] = values.get("final_dim") or values["embed_dim"]
            values = {"quantize_targets": False, **values}
        elif library == "huggingface":
            layers = zip(*(settings[name] for name in _CONVOLUTIONS), strict=True)
        else:
            layers = settings["extractor_conv_layer_config"]
        widths, kernels, strides = zip(*layers, strict=True)
        if len(set(widths)) > 1:
            raise ValueError(f"its convolutions have the widths {widths}, ours are all of one")
        values |= {"conv_channels": widths[0], "conv_kernels": kernels, "conv_strides": strides}
        values["extractor_norm"] = {v: k for k, v in norms.items()}[settings[key]]
        return from_dict(Wav2Vec2Config, values)
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError) as error:
        why = f"no usable {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the configuration in {source} cannot be used: {why}") from None


def _literal(value: Any) -> Any:
    """Lists as fairseq writes them, "[(512, 10, 5)] + [(512, 3, 2)] * 4", without running them."""

    def read(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float()):
                return node.value
            case ast.List() | ast.Tuple():
                return [read(item) for item in node.elts]
            case ast.BinOp(op=ast.Add()):
                return read(node.left) + read(node.right)
            case (
                ast.BinOp(left=ast.List(elts=items), op=ast.Mult(), right=right)
                | ast.BinOp(left=right, op=ast.Mult(), right=ast.List(elts=items))
            ):
                if (times := read(right)) < 100:
                    return [read(item) for item in items] * times
        raise ValueError(f"{value!r} is not a list of numbers")

    return read(ast.parse(value.strip(), mode="eval").body) if isinstance(value, str) else value

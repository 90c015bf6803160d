"""Every file under configs/ is valid, and its numbers are the paper's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio

from w2v2dist.config import flatten, read_yaml, to_dict
from w2v2dist.interop.names import their_name
from w2v2dist.model import Wav2Vec2ForCTC, Wav2Vec2ForPretraining
from w2v2dist.reporting.paper import references, show

CONFIGS = Path(__file__).parents[2] / "configs"
# Sweeps and recipes are of the files that they name (test_sweep.py, test_recipes.py)
TRAININGS = [
    p
    for p in CONFIGS.rglob("*.yaml")
    if p.parent.name != "recipes" and not p.name.startswith("sweep_")
]
FILES = sorted(p for p in TRAININGS if not p.name.startswith("common_"))

# The product's tables; the tests at the end compare them with their source
PRETRAINING = {name: ref.values for name, ref in references("pretrain").items()}
FINETUNING = {name: ref.values for name, ref in references("finetune").items()}
WITHOUT_LABELS = {name: ref.values for name, ref in references("unsupervised").items()}
FINETUNING_KEYS = (
    "schedule.peak_lr",
    "loop.max_steps",
    "model.mask_prob",
    "model.channel_mask_prob",
    "model.layer_drop",
    "freeze_steps",
)
ARCHITECTURE = (
    "num_layers embed_dim ffn_dim num_heads norm_first extractor_norm conv_bias final_dim".split()
)


def load(name: str) -> dict[str, Any]:
    """The resolved values of a configuration file, its dataclass's checks passed."""
    from w2v2dist.tasks.train import read_config

    return flatten(to_dict(read_config(str(CONFIGS / f"{name}.yaml"), [])))


def differences(values: dict[str, Any], expected: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {k: (values.get(k), want) for k, want in expected.items() if values.get(k) != want}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_file_is_valid_and_states_its_source(path: Path) -> None:
    name = str(path.relative_to(CONFIGS).with_suffix(""))
    values = load(name)
    assert values["run_dir"].split("/")[-1] == path.stem
    comment = re.match(r"(# .*\n)+", path.read_text())
    assert comment is not None
    assert re.search(r"\b(P|F|A20)\b", comment[0])
    if path.stem.startswith("own_language"):
        assert values["pretrained"].startswith("facebook/wav2vec2-xls-r-")  # of the hub
    elif values["task"] == "finetune" and values["pretrained"] is not None:
        assert (CONFIGS / values["pretrained"].replace("runs/", "")).with_suffix(".yaml").exists()


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_is_the_papers(name: str) -> None:
    # Crops are rounded down, which costs 0.8 % of the audio (test_order.py)
    found = differences(load(name), PRETRAINING[name])
    assert found == {"data.crop_multiple": (3_200, 1)}


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_is_fairseqs(name: str) -> None:
    source = {"base": "base_ls960", "large": "large_lv60k", "timit": "large_ls960"}
    pretraining = source[name.split("_")[0]]
    expected = {
        **FINETUNING[name],
        **{k: PRETRAINING[pretraining][k] for k in (f"model.{a}" for a in ARCHITECTURE)},
        "data.normalize": PRETRAINING[pretraining]["data.normalize"],
        "pretrained": f"runs/{pretraining}",
    }
    assert differences(load(f"finetune/{name}"), expected) == {}


def test_language_model_is_the_papers() -> None:
    (expected,) = (ref.values for ref in references("language_model").values())
    assert differences(load("lm/transformer_librispeech"), expected) == {}


@pytest.mark.parametrize("inputs", ["continuous", "quantized"])
@pytest.mark.parametrize("targets", ["continuous", "quantized"])
def test_ablations_change_nothing_else(inputs: str, targets: str) -> None:
    values, base = load(f"ablations/{inputs}_{targets}"), load("base_ls960")
    expected = {
        **base,
        "run_dir": f"runs/ablations/{inputs}_{targets}",
        "model.quantize_inputs": inputs == "quantized",
        "model.quantize_targets": targets == "quantized",
    }
    assert values == expected


def test_large_from_scratch_differs_only_where_nothing_is_pretrained() -> None:
    values, fine = load("finetune/large_scratch_960h"), load("finetune/large_960h")
    changed = {key for key in values if values[key] != fine[key]}
    assert values["pretrained"] is None
    assert values["freeze_steps"] == 0
    assert values["freeze_feature_encoder"] is False
    assert changed - {"model.feature_grad_mult"} == {
        "run_dir", "pretrained", "freeze_steps", "freeze_feature_encoder", "schedule.peak_lr"
    }  # fmt: skip


def test_tiny_finetuning_fits_the_tiny_model() -> None:
    pretraining, finetuning = load("tiny_pretrain"), load("tiny_finetune")
    names = [*ARCHITECTURE, "conv_channels", "pos_conv_kernel", "pos_conv_groups", "conv_kernels"]
    assert differences(finetuning, {f"model.{n}": pretraining[f"model.{n}"] for n in names}) == {}


def test_overlays_are_no_runs() -> None:
    overlays = sorted(CONFIGS.rglob("common_*.yaml"))
    assert len(overlays) == 2
    assert all("run_dir" not in read_yaml(path) for path in overlays)


# --- the tables above against their source, where it is on this machine --------------------------


def table(markdown: str, section: str) -> list[list[str]]:
    """Cells of the first table of a `## section`, without the ruler."""
    body = markdown.partition(f"## {section}")[2].partition("\n## ")[0]
    rows = [
        line.strip().strip("|").split("|") for line in body.splitlines() if line.startswith("|")
    ]
    return [
        [cell.strip() for cell in row] for row in rows if not re.fullmatch(r"[-| ]+", "|".join(row))
    ]


def numbers(cell: str) -> list[float]:
    """Numbers of a cell: 1.4M, 32k, 250,000, 5e-4; what stands in brackets is a remark."""
    cell = re.sub(r"\(.*?\)", "", cell).replace(",000", "000").replace(", at most", "")
    found = re.findall(r"(\d+(?:\.\d+)?(?:e-\d+)?)([kM]?)", cell)
    return [float(n) * {"": 1, "k": 1e3, "M": 1e6}[unit] for n, unit in found]


# Sentences of the source, with our values in the places of its numbers
PROSE = """
{model.conv_channels} channels, kernels {model.conv_kernels}, strides {model.conv_strides}, GELU
kernel {model.pos_conv_kernel}, {model.pos_conv_groups} groups
G = {model.num_codebooks} codebooks of V = {model.num_codebook_entries} entries
{model.num_distractors} distractors
logit temperature {model.logit_temperature}
mask probability {model.mask_prob}, span {model.mask_span_length}, at least
at least {model.min_mask_spans} spans
Adam ({optimizer.betas}), eps {optimizer.eps}, decoupled weight decay {optimizer.weight_decay}
{schedule.name} warm-up then linear decay to 0
"""
FINETUNING_PROSE = """
{model.conv_channels} channels, kernels {model.conv_kernels}, strides {model.conv_strides}, GELU
kernel {model.pos_conv_kernel}, {model.pos_conv_groups} groups
at least {model.min_mask_spans} spans
Adam ({optimizer.betas}), eps {optimizer.eps}, no weight decay; tri-stage schedule
tri-stage schedule: {schedule.warmup_fraction} warm-up from {schedule.initial_scale} × lr
{schedule.hold_fraction} constant, 50 % exponential decay to {schedule.final_scale} × lr
time-mask length {model.mask_span_length}, channel-mask length {model.channel_mask_length}
activation dropout {model.activation_dropout}, other dropouts {model.dropout}
activation dropout 0.1, other dropouts {model.attention_dropout}
activation dropout 0.1, other dropouts {model.input_dropout}
activation dropout 0.1, other dropouts {model.feature_dropout}
"""
# Settings of this project, at the values that leave everything as the paper has it, and words
OURS = set(
    "task pretrained freeze_feature_encoder engine.precision model.quantize_inputs "
    "model.quantize_targets model.channel_mask_prob data.crop_multiple "
    "data.speed_perturbation".split()
)


def sourced(values: dict[str, Any], prose: str, text: str) -> set[str]:
    """The keys of the sentences in `prose`, each of which must stand in the source's text."""
    text = " ".join(text.split()).replace("0.9, 0.98", "0.9,0.98")
    keys: set[str] = set()
    for sentence in prose.strip().splitlines():
        found = re.findall(r"{(.*?)}", sentence)
        for key in found:
            value = values[key]
            shown = ",".join(map(str, value)) if isinstance(value, list) else show(value)
            if key.endswith("_fraction"):
                shown = f"{100 * value:g} %"
            sentence = sentence.replace(f"{{{key}}}", shown)
        assert sentence in text
        keys |= {*found}
    return keys


@pytest.mark.shared("PAPER.md")
def test_pretraining_table_is_the_source(paper_path: Path) -> None:
    text = paper_path.read_text()
    header, *rows = table(text, "Pre-training")
    columns = {
        "base_ls960": "BASE, LS-960",
        "large_ls960": "LARGE, LS-960",
        "large_lv60k": "*ours*",
    }
    keys = {
        "layers / dim": "model.num_layers model.embed_dim model.ffn_dim model.num_heads",
        "crop / minimum": "data.max_crop data.min_samples",
        "max samples": "data.max_samples_per_slot data.virtual_world_size",
        "peak lr": "schedule.peak_lr schedule.warmup_steps loop.max_steps",
        "final_dim": "model.final_dim",
        "Gumbel": "model.temperature.start model.temperature.floor model.temperature.decay",
        "loss weights": "model.diversity_weight model.feature_penalty_weight",
        "feature-encoder gradient": "model.feature_grad_mult",
        "dropout / attention": "model.dropout model.attention_dropout model.activation_dropout",
        "dropout on input": "model.input_dropout model.feature_dropout",
        "LayerDrop": "model.layer_drop",
    }
    truths = {
        "layer_norm_first": ("model.norm_first", "true"),
        "input normalised": ("data.normalize", "yes"),
    }
    seen: dict[str, set[str]] = {name: set() for name in columns}
    for name, title in columns.items():
        column = next(i for i, text in enumerate(header) if title in text)
        for row in rows:
            cell = row[column - 1] if row[column] == "same" else row[column]
            for start, names in keys.items():
                if row[0].startswith(start):
                    expected = [PRETRAINING[name][key] for key in names.split()]
                    assert numbers(cell) == pytest.approx(expected), (name, row[0])
                    seen[name] |= {*names.split()}
            for start, (key, yes) in truths.items():
                if row[0].startswith(start):
                    assert PRETRAINING[name][key] == (cell == yes), (name, row[0])
                    seen[name].add(key)
            if row[0].startswith("extractor norm"):
                assert cell.startswith(PRETRAINING[name]["model.extractor_norm"])
                assert cell.endswith("yes" if PRETRAINING[name]["model.conv_bias"] else "no")
                seen[name] |= {"model.extractor_norm", "model.conv_bias"}
    for name, keys_seen in seen.items():  # not one number without its source
        assert (
            keys_seen | sourced(PRETRAINING[name], PROSE, text) == PRETRAINING[name].keys() - OURS
        )


@pytest.mark.shared("PAPER.md")
def test_finetuning_table_is_the_source(paper_path: Path) -> None:
    text = paper_path.read_text()
    rows = table(text, "Fine-tuning with CTC")[1:]
    source = {}
    for names, *cells in rows:
        values = [numbers(cell)[0] for cell in cells]
        source |= {name.strip(): values for name in names.replace("(P)", "").split(",")}
    ours = {name: [values[k] for k in FINETUNING_KEYS] for name, values in FINETUNING.items()}
    assert ours == {name: pytest.approx(values) for name, values in source.items()}
    # Compared with pre-training's above
    inherited = {"data.normalize", "data.tokens", *(f"model.{a}" for a in ARCHITECTURE)}
    for name, values in FINETUNING.items():
        batch = "BASE {} samples × {} GPUs" if name.startswith("base") else "LARGE {} × {}"
        batch = "(960 h: × {1})" if name == "large_960h" else batch
        millions = f"{values['data.max_samples_per_slot'] / 1e6:g}M"
        assert batch.format(millions, values["data.virtual_world_size"]) in text
        keys = sourced(values, FINETUNING_PROSE, text) | inherited | {*FINETUNING_KEYS}
        keys |= {"data.max_samples_per_slot", "data.virtual_world_size"}
        assert (values["optimizer.weight_decay"], values["schedule.name"]) == (0, "tri_stage")
        keys |= {"optimizer.weight_decay", "schedule.name"}  # "no weight decay; tri-stage schedule"
        assert keys - OURS == values.keys() - OURS


@pytest.mark.shared("PAPER.md")
def test_language_model_is_the_source(paper_path: Path) -> None:
    values = {k: show(v) for k, v in load("lm/transformer_librispeech").items() if "model." in k}
    sentence = "Transformer LM ({} blocks, {} wide, FFN {}, {} heads)"
    names = ("num_layers", "embed_dim", "ffn_dim", "num_heads")
    assert sentence.format(*(values[f"model.{n}"] for n in names)) in paper_path.read_text()


@pytest.mark.shared("PAPER.md")
def test_differences_are_the_sources(paper_path: Path) -> None:
    """Where paper and released file differ: the remark on heads, the last column of LARGE."""
    text = paper_path.read_text()
    known = {name: ref.differences for name, ref in references("pretrain").items()}
    heads = known["base_ls960"]["model.num_heads"]
    assert f"/ {heads['released']} (P prints {heads['paper']} heads)" in text
    header, *rows = table(text, "Pre-training")
    assert "(F, a later model)" in header[-1]
    row = next(row for row in rows if row[0].startswith("peak lr"))
    lr, steps = (known["large_lv60k"][k] for k in ("schedule.peak_lr", "loop.max_steps"))
    warmup = PRETRAINING["large_lv60k"]["schedule.warmup_steps"]
    assert numbers(row[-1]) == [lr["released"], warmup, steps["released"]]
    assert numbers(row[-2]) == [lr["paper"], warmup, steps["paper"]]
    utterances = known["large_lv60k"]["utterances a slot"]["released"]
    assert any(row[-1].endswith(f"{utterances} utterances") for row in rows)
    assert all(d["engine.precision"]["released"] == "fp16" for d in known.values())
    assert "fp16 in F" in text
    # elsewhere the two columns of LARGE LV-60k agree
    others = [row for row in rows if not row[0].startswith(("peak lr", "max samples"))]
    assert all(row[-1] == "same" or numbers(row[-1]) == numbers(row[-2]) for row in others)


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("own_language", "300m", 317),
        ("own_language_1b", "1b", 965),
        ("own_language_2b", "2b", 2162),
    ],
)
def test_xlsr_has_the_published_geometry(name: str, size: str, millions: int) -> None:
    """Every weight's shape against torchaudio's own XLS-R, on the meta device; the parameters of
    the pre-trained model are the paper's (Babu et al., 2021). MMS has the first two."""
    from w2v2dist.tasks.train import read_config

    config = read_config(str(CONFIGS / f"finetune/{name}.yaml"), [])
    with torch.device("meta"):
        ours = Wav2Vec2ForCTC(config.model, 32).state_dict()
        theirs = getattr(torchaudio.models, f"wav2vec2_xlsr_{size}")(aux_num_out=32).state_dict()
        pretrained = Wav2Vec2ForPretraining(config.model)
    named = {
        their_name(n, "torchaudio", config.model, True): tuple(t.shape) for n, t in ours.items()
    }
    assert named.pop(None) == (config.model.embed_dim,)  # the mask embedding
    assert named == {n: tuple(t.shape) for n, t in theirs.items()}
    assert sum(p.numel() for p in pretrained.parameters()) // 10**6 == millions
    assert config.data.normalize  # as all that have layer norm in the feature encoder


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_training_without_labels_is_the_reference_s(name: str) -> None:
    """w2vu.yaml and w2vu2.yaml of fairseq 3d262bb; the parameters of both."""
    from w2v2dist.tasks.train import read_config
    from w2v2dist.unsupervised.gan import Gan

    expected = WITHOUT_LABELS[name] | {"loop.validate_every": 1_000}
    assert differences(load(f"unsupervised/{name}"), expected) == {}
    config = read_config(str(CONFIGS / f"unsupervised/{name}.yaml"), [])
    gan = Gan(config.model, config.losses, 512 if name == "v1" else 1024, 44)
    modules = (gan.generator, gan.discriminator)
    sizes = [sum(p.numel() for p in module.parameters()) for module in modules]
    if name == "v1":
        assert sizes[0] == 44 * 512 * 4  # "90 k"
        assert sizes[1] == 384 * 44 * 6 + 384 + 384 * 384 * 6 + 384 + 384 * 6 + 1
    else:
        assert sum(sizes) == 2_841_409

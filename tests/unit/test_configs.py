"""Every file under configs/ is valid, and its numbers are the paper's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from w2v2dist.config import flatten, read_yaml, to_dict

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("common_"))

# Typed from the paper and fairseq's files; the tests at the end compare them with their source
COLUMNS = ("base_ls960", "large_ls960", "large_lv60k")
TABLE: dict[str, tuple[Any, Any, Any]] = {
    "model.num_layers": (12, 24, 24),
    "model.embed_dim": (768, 1024, 1024),
    "model.ffn_dim": (3072, 4096, 4096),
    "model.num_heads": (12, 16, 16),
    "model.norm_first": (False, False, True),
    "model.extractor_norm": ("group", "group", "layer"),
    "model.conv_bias": (False, False, True),
    "model.final_dim": (256, 768, 768),
    "model.feature_grad_mult": (0.1, 0.1, 1),
    "model.temperature.start": (2, 2, 2),
    "model.temperature.floor": (0.5, 0.1, 0.1),
    "model.temperature.decay": (0.999995, 0.999995, 0.999995),
    "model.diversity_weight": (0.1, 0.1, 0.1),
    "model.feature_penalty_weight": (10, 10, 0),
    "model.dropout": (0.1, 0, 0),
    "model.attention_dropout": (0.1, 0.1, 0),
    "model.activation_dropout": (0, 0, 0),
    "model.input_dropout": (0.1, 0.1, 0),
    "model.feature_dropout": (0.1, 0.1, 0),
    "model.layer_drop": (0.05, 0.2, 0),
    "data.normalize": (False, False, True),
    "data.max_crop": (250_000, 320_000, 320_000),
    "data.min_samples": (32_000, 32_000, 32_000),
    "data.max_samples_per_slot": (1_400_000, 1_200_000, 1_200_000),
    "data.virtual_world_size": (64, 128, 128),
    "schedule.peak_lr": (5e-4, 3e-4, 3e-4),
    "schedule.warmup_steps": (32_000, 20_000, 32_000),
    "loop.max_steps": (400_000, 250_000, 600_000),
}
PRETRAINING = {
    name: {key: values[i] for key, values in TABLE.items()} for i, name in enumerate(COLUMNS)
}
COMMON = {
    "model.conv_channels": 512,
    "model.conv_kernels": [10, 3, 3, 3, 3, 2, 2],
    "model.conv_strides": [5, 2, 2, 2, 2, 2, 2],
    "model.pos_conv_kernel": 128,
    "model.pos_conv_groups": 16,
    "model.mask_span_length": 10,
    "optimizer.betas": [0.9, 0.98],
    "engine.precision": "bf16",
}
COMMON_PRETRAINING = {
    **COMMON,
    "task": "pretrain",
    "model.num_codebooks": 2,
    "model.num_codebook_entries": 320,
    "model.num_distractors": 100,
    "model.logit_temperature": 0.1,
    "model.mask_prob": 0.65,
    "model.min_mask_spans": 2,
    "model.channel_mask_prob": 0,
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.01,
    "schedule.name": "linear",
}
COMMON_FINETUNING = {
    **COMMON,
    "task": "finetune",
    "freeze_feature_encoder": True,
    "model.channel_mask_length": 64,
    "model.activation_dropout": 0.1,
    "model.dropout": 0,
    "model.attention_dropout": 0,
    "model.input_dropout": 0,
    "model.feature_dropout": 0,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0,
    "schedule.name": "tri_stage",
    "schedule.warmup_fraction": 0.1,
    "schedule.hold_fraction": 0.4,
    "schedule.initial_scale": 0.01,
    "schedule.final_scale": 0.05,
}
FINETUNING_KEYS = (
    "schedule.peak_lr",
    "loop.max_steps",
    "model.mask_prob",
    "model.channel_mask_prob",
    "model.layer_drop",
    "freeze_steps",
)
FINETUNING: dict[str, tuple[float, ...]] = {
    "base_10m": (5e-5, 13_000, 0.65, 0.25, 0.1, 10_000),
    "base_1h": (5e-5, 13_000, 0.65, 0.25, 0.1, 10_000),
    "base_10h": (5e-5, 20_000, 0.65, 0.5, 0.05, 10_000),
    "base_100h": (3e-5, 80_000, 0.65, 0.5, 0.1, 0),
    "base_960h": (1e-4, 320_000, 0.5, 0.1, 0.1, 0),
    "large_10m": (1e-4, 13_000, 0.65, 0.25, 0.1, 10_000),
    "large_1h": (3e-4, 13_000, 0.75, 0.25, 0.1, 10_000),
    "large_10h": (1e-4, 20_000, 0.75, 0.25, 0.1, 10_000),
    "large_100h": (3e-5, 80_000, 0.5, 0.5, 0.1, 10_000),
    "large_960h": (3e-5, 320_000, 0.5, 0.25, 0.1, 10_000),
    "timit": (1e-4, 40_000, 0.65, 0.768, 0.1, 10_000),
}
ARCHITECTURE = (
    "num_layers embed_dim ffn_dim num_heads norm_first extractor_norm conv_bias final_dim".split()
)


def load(name: str) -> dict[str, Any]:
    """The resolved values of a configuration file, its dataclass's checks passed."""
    from w2v2dist.cli import read_config

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
    if values["task"] == "finetune" and values["pretrained"] is not None:
        assert (CONFIGS / values["pretrained"].replace("runs/", "")).with_suffix(".yaml").exists()


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_is_the_papers(name: str) -> None:
    assert differences(load(name), {**COMMON_PRETRAINING, **PRETRAINING[name]}) == {}


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_is_fairseqs(name: str) -> None:
    source = {"base": "base_ls960", "large": "large_lv60k", "timit": "large_ls960"}
    pretraining = source[name.split("_")[0]]
    num_slots, max_samples = (8, 3_200_000) if name.startswith("base") else (20, 1_280_000)
    expected = {
        **COMMON_FINETUNING,
        **dict(zip(FINETUNING_KEYS, FINETUNING[name], strict=True)),
        **{k: PRETRAINING[pretraining][k] for k in (f"model.{a}" for a in ARCHITECTURE)},
        "pretrained": f"runs/{pretraining}",
        "data.normalize": PRETRAINING[pretraining]["data.normalize"],
        "data.virtual_world_size": 24 if name == "large_960h" else num_slots,
        "data.max_samples_per_slot": max_samples,
        "data.tokens": "phones" if name == "timit" else "letters",
    }
    assert differences(load(f"finetune/{name}"), expected) == {}


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


def test_pretraining_table_is_the_source(paper_path: Path) -> None:
    header, *rows = table(paper_path.read_text(), "Pre-training")
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
    seen = 0
    for name, title in columns.items():
        column = next(i for i, text in enumerate(header) if title in text)
        for row in rows:
            cell = row[column - 1] if row[column] == "same" else row[column]
            for start, names in keys.items():
                if row[0].startswith(start):
                    expected = [PRETRAINING[name][key] for key in names.split()]
                    assert numbers(cell) == pytest.approx(expected), (name, row[0])
                    seen += len(expected)
            for start, (key, yes) in truths.items():
                if row[0].startswith(start):
                    assert PRETRAINING[name][key] == (cell == yes), (name, row[0])
                    seen += 1
            if row[0].startswith("extractor norm"):
                assert cell.startswith(PRETRAINING[name]["model.extractor_norm"])
                assert cell.endswith("yes" if PRETRAINING[name]["model.conv_bias"] else "no")
                seen += 2
    assert seen == sum(map(len, PRETRAINING.values()))  # not one typed number without its source


def test_finetuning_table_is_the_source(paper_path: Path) -> None:
    rows = table(paper_path.read_text(), "Fine-tuning with CTC")[1:]
    source = {}
    for names, *cells in rows:
        values = tuple(numbers(cell)[0] for cell in cells)
        source |= {name.strip(): values for name in names.replace("(P)", "").split(",")}
    assert source == {name: pytest.approx(values) for name, values in FINETUNING.items()}

"""wav2vec-U against the reference implementation: outputs, losses, gradients of both turns, and 20
updates through the training itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.training_parts import world as world  # a fixture
from w2v2dist.config import from_dict
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.unsupervised import UnsupervisedTask
from w2v2dist.training.loop import Finished, fit
from w2v2dist.unsupervised.config import UnsupervisedConfig
from w2v2dist.unsupervised.gan import DISCRIMINATOR, GENERATOR, Gan, GanBatch, read_batch
from w2v2dist.unsupervised.gan_losses import Rows, gradient_penalty, text_rows
from w2v2dist.unsupervised.join import join
from w2v2dist.unsupervised.selection import phones_of

FOLDERS = [
    "golden_dir",
    pytest.param("full_golden_dir", marks=pytest.mark.shared("golden")),
]
VERSIONS = ("v1", "v2")
# Relative to the largest value
OUTPUT, LOSS, GRADIENT, UPDATES = 1e-5, 1e-5, 1e-4, 1e-4
# code_pen subtracts near equals: so much of it is rounding (in sums over the batch)
ROUNDING = 4e-6
NAMES = {
    "generator.proj.1.": "generator.convolution.",
    "generator.bn.": "generator.batch_norm.",
    "generator.in_proj.": "generator.linear.",
    "decoder.": "generator.auxiliary.",
    "discriminator.net.0.": "discriminator.convolutions.0.",
    "discriminator.net.3.0.": "discriminator.convolutions.1.",
    "discriminator.net.4.": "discriminator.convolutions.2.",
}
TERMS = {
    "grad_pen": "gradient_penalty",
    "dense_d": "fake_loss",
    "token_d": "real_loss",
    "code_pen": "diversity_loss",
    "smoothness": "smoothness_loss",
    "dense_g": "fooling_loss",
    "mmi": "auxiliary_loss",
}
Golden = tuple[dict[str, Tensor], dict[str, Any]]


def our_name(theirs: str) -> str:
    (prefix,) = [prefix for prefix in NAMES if theirs.startswith(prefix)]
    return NAMES[prefix] + theirs.removeprefix(prefix)


def read(path: Path) -> Golden:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["json"])


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(params=VERSIONS)
def golden(folder: Path, request: pytest.FixtureRequest) -> Golden:
    return read(folder / f"w2vu_{request.param}.safetensors")


def settings(info: dict[str, Any], **more: Any) -> UnsupervisedConfig:
    """The golden model's settings in ours."""
    m = info["model"]
    values = {
        "run_dir": "unused",
        "model": {
            "generator": {
                "kernel_size": m["generator_kernel"],
                "stride": m["generator_stride"],
                "dropout": m["generator_dropout"],
                "batch_norm_scale": m["generator_batch_norm"],
                "residual": m["generator_residual"],
            },
            "discriminator": {
                "dim": m["discriminator_dim"],
                "kernel_size": m["discriminator_kernel"],
            },
            "num_targets": m["target_dim"],
        },
        "losses": {
            "penalty_weight": m["gradient_penalty"],
            "smoothness_weight": m["smoothness_weight"],
            "diversity_weight": m["code_penalty"],
            "auxiliary_weight": m["mmi_weight"],
        },
        "data": {"batch_size": info["batch_size"]},
        **more,
    }
    return from_dict(UnsupervisedConfig, values)


def start(gan: Gan, tensors: dict[str, Tensor]) -> None:
    """Load the golden start."""
    state = {
        our_name(n.removeprefix("initial.")): t
        for n, t in tensors.items()
        if n.startswith("initial.")
    }
    for group in (GENERATOR, DISCRIMINATOR):
        module: torch.nn.Module = getattr(gan, group)
        own = {n.removeprefix(f"{group}."): t for n, t in state.items() if n.startswith(group)}
        missing, unexpected = module.load_state_dict(own, strict=False)
        assert {*missing} <= {"batch_norm.num_batches_tracked"}
        assert not unexpected


def make_batch(tensors: dict[str, Tensor], prefix: str, step: int) -> GanBatch:
    get = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    targets = get["aux_target"][:, ::2].long() if "aux_target" in get else None  # 100 Hz to 50
    return GanBatch(
        step=step,
        slot=0,
        num_targets=float(len(get["features"])),
        amount=len(get["features"]),
        features=get["features"],
        padding=get["padding_mask"],
        targets=targets,
        text=get["random_label"].long(),
        alpha=get["alpha"],
        join_draws=get["join_uniform"],
    )


def made(golden: Golden) -> tuple[Gan, GanBatch]:
    tensors, info = golden
    config = settings(info)
    gan = Gan(config.model, config.losses, info["width"], len(info["symbols"]))
    start(gan, tensors)
    return gan, make_batch(tensors, "batch.", 1)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    largest = theirs.double().abs().max().item()
    assert (ours.double() - theirs.double()).abs().max().item() <= tolerance * largest


def test_outputs(golden: Golden) -> None:
    tensors, _ = golden
    gan, batch = made(golden)
    out = gan.generator(batch.features, batch.padding)
    close(out.logits, tensors["out.generator_logits"], OUTPUT)
    assert torch.equal(out.padding, tensors["out.generator_padding_mask"])
    if "out.residual_branch" in tensors:
        close(out.branch, tensors["out.residual_branch"], OUTPUT)
        assert gan.generator.auxiliary is not None
        assert gan.generator.batch_norm is not None
        close(gan.generator.auxiliary(out.branch), tensors["out.aux_logits"], OUTPUT)
        for name in ("running_mean", "running_var"):
            moved = getattr(gan.generator.batch_norm, name)
            close(moved, tensors[f"after_forward.generator.bn.{name}"], OUTPUT)
    joined = join(out.logits, out.padding, batch.join_draws)
    assert joined.members is not None
    assert torch.equal(joined.members, tensors["out.join_members"].long())
    assert torch.equal(joined.padding, tensors["out.joined_padding_mask"])
    close(joined.logits, tensors["out.joined_logits"], OUTPUT)
    fake = Rows(joined.logits.softmax(-1), joined.padding)
    close(fake.items, tensors["out.fake_probabilities"], OUTPUT)
    assert batch.text is not None
    assert batch.alpha is not None
    real = text_rows(batch.text, 1, fake.items.shape[-1])
    close(gan.discriminator(fake.items, fake.padding), tensors["out.fake_score"], OUTPUT)
    close(gan.discriminator(real.items, real.padding), tensors["out.real_score"], OUTPUT)
    close(gan.discriminator(tensors["out.interpolates"]), tensors["out.interpolate_score"], OUTPUT)
    penalty = gradient_penalty(gan.discriminator, fake, real, batch.alpha, gan.config)
    close(penalty, tensors["out.penalty_per_channel"], OUTPUT)


def test_normalized_features(golden: Golden) -> None:
    tensors, _ = golden
    if "out.normalized_features" in tensors:
        gan, batch = made(golden)
        ours = gan.generator.normalized(batch.features, batch.padding)
        close(ours, tensors["out.normalized_features"], OUTPUT)


@pytest.mark.parametrize("turn", [GENERATOR, DISCRIMINATOR])
def test_losses_and_gradients(golden: Golden, turn: str) -> None:
    tensors, info = golden
    gan, batch = made(golden)
    theirs = info["step_g" if turn == GENERATOR else "step_d"]
    losses = gan.losses(batch, turn)
    for name, value in theirs["losses"].items():
        tolerance = LOSS * abs(value) + (ROUNDING if name == "code_pen" else 0)
        assert losses[TERMS[name]].item() == pytest.approx(value, abs=tolerance), name
    assert losses["loss"].item() == pytest.approx(theirs["loss"], rel=LOSS)
    assert losses["code_perplexity"].item() == pytest.approx(theirs["code_ppl"], rel=LOSS)
    assert losses["prob_perplexity"].item() == pytest.approx(theirs["prob_ppl"], rel=LOSS)
    losses["loss"].backward()
    gradients = named_gradients(gan)
    without = {our_name(name) for name in theirs["parameters_without_gradient"]}
    assert {name for name, g in gradients.items() if g is None} == without
    prefix = "grad_g." if turn == GENERATOR else "grad_d."
    compared = 0
    for name, expected in tensors.items():
        if name.startswith(prefix):
            ours = gradients[our_name(name.removeprefix(prefix))]
            assert ours is not None
            close(ours, expected, GRADIENT)
            compared += 1
    assert compared == len(gradients) - len(without)


@pytest.mark.shared("golden")
@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_by_term(full_golden_dir: Path, version: str) -> None:
    golden = read(full_golden_dir / f"w2vu_{version}.safetensors")
    tensors, _ = golden
    compared = 0
    for turn, prefix in ((GENERATOR, "grad_g_term."), (DISCRIMINATOR, "grad_d_term.")):
        terms = {n.removeprefix(prefix).split(".")[0] for n in tensors if n.startswith(prefix)}
        for term in terms:
            gan, batch = made(golden)
            gan.losses(batch, turn)[TERMS[term]].backward()
            gradients = named_gradients(gan)
            for name, expected in tensors.items():
                if name.startswith(f"{prefix}{term}."):
                    ours = gradients[our_name(name.removeprefix(f"{prefix}{term}."))]
                    assert ours is not None
                    close(ours, expected, GRADIENT)
                    compared += 1
    assert compared > 15


def named_gradients(gan: Gan) -> dict[str, Tensor | None]:
    return {
        f"{group}.{name}": p.grad
        for group in (GENERATOR, DISCRIMINATOR)
        for name, p in getattr(gan, group).named_parameters()
    }


def test_evaluation(golden: Golden) -> None:
    tensors, info = golden
    gan, batch = made(golden)
    gan.generator.eval()
    with torch.no_grad():
        out = gan.generator(batch.features, batch.padding)
        joined = join(out.logits, out.padding, None)
        close(out.logits, tensors["eval.generator_logits"], OUTPUT)
        close(joined.logits, tensors["eval.joined_logits"], OUTPUT)
        assert torch.equal(joined.padding, tensors["eval.joined_padding_mask"])
        close(joined.logits.softmax(-1), tensors["eval.returned_logits"], OUTPUT)
        greedy = [phones_of(row, info["sil"]) for row in read_batch(gan.generator, batch)]
        assert greedy == info["eval"]["greedy"]
        for stride in (1, 2):
            if f"eval.stride{stride}_logits" in tensors:
                other = gan.generator(batch.features, batch.padding, stride)
                close(other.logits, tensors[f"eval.stride{stride}_logits"], OUTPUT)
                mask = tensors[f"eval.stride{stride}_padding_mask"]
                assert torch.equal(other.padding, mask)


@dataclasses.dataclass
class GoldenSource:
    """The golden batches as a training's data."""

    steps: list[GanBatch]
    dim: int
    symbols: list[str]
    fingerprint: str = "golden"
    notes: tuple[str, ...] = ()
    validation: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    valid: None = None
    made_by: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def train(self) -> GoldenSource:
        return self

    text = train

    def __len__(self) -> int:
        return 1

    def check(self) -> None:
        pass

    def batches(self, steps: Iterable[int], slots: list[int], seed: int) -> Iterator[GanBatch]:
        assert slots == [0]
        yield from (self.steps[step - 1] for step in steps)


def trained(golden: Golden, which: str, world: World, run_dir: Path) -> UnsupervisedTask:
    """The golden updates by our training, which logs a record of each."""
    tensors, info = golden
    theirs = info[which]
    groups = theirs["optimizer_groups"]
    g, d = groups[GENERATOR], groups[DISCRIMINATOR]
    for same in ("betas", "eps"):
        assert g[same] == d[same]
    num_updates = len(theirs["history"])
    values = {
        "loop": {"max_steps": num_updates, "log_every": 1},
        "engine": {"clip_norm": theirs["clip_norm"]},
        "optimizer": {
            "betas": g["betas"],
            "eps": g["eps"],
            "weight_decay": g["weight_decay"],
            "discriminator_weight_decay": d["weight_decay"],
        },
        "schedule": {"peak_lr": g["lr"], "discriminator_peak_lr": d["lr"]},
    }
    config = dataclasses.replace(settings(info, **values), run_dir=str(run_dir))
    batches = [make_batch(tensors, f"train.{i:02d}.", i + 1) for i in range(num_updates)]
    source: Any = GoldenSource(batches, info["width"], info["symbols"])
    task = UnsupervisedTask(config, source)
    start(task.gan, tensors)
    assert isinstance(fit(config, task, world, PreemptionFlag()), Finished)
    return task


@pytest.mark.parametrize("which", ["train", "strong"])
def test_updates(golden: Golden, which: str, world: World, tmp_path: Path) -> None:
    tensors, info = golden
    task = trained(golden, which, world, tmp_path / "run")
    history = info[which]["history"]
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert len(records) == len(history)
    for record, theirs in zip(records, history, strict=True):
        for name, value in theirs["losses"].items():
            rows = info["batch_size"]
            tolerance = UPDATES * abs(value) / rows + (ROUNDING if name == "code_pen" else 0)
            assert record[TERMS[name]] == pytest.approx(value / rows, abs=tolerance), record["step"]
        assert record["loss"] == pytest.approx(theirs["loss_per_row"], rel=UPDATES)
        assert record["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=UPDATES)
        assert record["code_perplexity"] == pytest.approx(theirs["code_ppl"], rel=UPDATES)
    state = {
        f"{group}.{name}": tensor
        for group in (GENERATOR, DISCRIMINATOR)
        for name, tensor in getattr(task.gan, group).state_dict().items()
    }
    moved = 0
    for name, final in tensors.items():
        if name.startswith(prefix := f"{which}.final."):
            name = name.removeprefix(prefix)
            ours, begin = state[our_name(name)], tensors[f"initial.{name}"]
            close(ours, final, UPDATES)
            # Also relative to what the updates have moved, but for the rounding of twenty sums (a
            # single weight may be 5e-4 of that away, in double precision as well)
            spacing = torch.finfo(torch.float32).eps * begin.abs().max().item()
            move = (final - begin).norm().item()
            rounding = 4 * spacing * begin.numel() ** 0.5
            assert (ours - final).norm().item() <= UPDATES * move + rounding, name
            moved += 1
    assert moved == len(info[which]["norm_names"])

"""wav2vec-U's parts against slow, obvious references, and what must hold exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from w2v2dist.runtime.distributed import World
from w2v2dist.training.plain_engine import PlainEngineConfig, make_engines
from w2v2dist.unsupervised.config import GanOptimizerConfig
from w2v2dist.unsupervised.discriminator import Discriminator, DiscriminatorConfig
from w2v2dist.unsupervised.gan import DISCRIMINATOR, GENERATOR, Gan, GanBatch, GanConfig
from w2v2dist.unsupervised.gan_losses import (
    GanLossConfig,
    Rows,
    auxiliary_loss,
    discriminator_losses,
    generator_losses,
    gradient_penalty,
    text_rows,
)
from w2v2dist.unsupervised.generator import Generator, GeneratorConfig
from w2v2dist.unsupervised.join import Joined, join

V1 = GeneratorConfig()
V2 = GeneratorConfig(kernel_size=9, stride=3, batch_norm_scale=30, residual=True)
MASKED = GanLossConfig(padding="masked", auxiliary_weight=0.5)
FAIRSEQ = GanLossConfig(auxiliary_weight=0.5)


class Linear(nn.Module):
    """A discriminator of one 1 × 1 convolution."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, items: Tensor, padding: Tensor | None = None) -> Tensor:
        if padding is None:
            padding = torch.zeros(items.shape[:2], dtype=torch.bool)
        scores = (items @ self.weight).masked_fill(padding, 0.0)
        return scores.sum(1) / (~padding).sum(1)


def rows(*sizes: int, num_symbols: int = 5, longest: int | None = None) -> Rows:
    """Random probabilities of rows of these lengths."""
    m = longest or max(sizes)
    padding = torch.arange(m) >= torch.tensor(sizes)[:, None]
    return Rows(torch.randn(len(sizes), m, num_symbols).softmax(-1), padding)


@given(length=st.integers(1, 20), other=st.integers(1, 20), alpha=st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_the_penalty_of_a_linear_discriminator(length: int, other: int, alpha: float) -> None:
    weight = torch.tensor([3.0, -4.0, 0.5, 0.0, 12.0], dtype=torch.float64)
    m = min(length, other)
    fake, real = (Rows(r.items.double(), r.padding) for r in (rows(length), rows(other)))
    draws = torch.tensor([alpha], dtype=torch.float64)
    found = gradient_penalty(Linear(weight), fake, real, draws, FAIRSEQ)
    expected = (weight.abs() / math.sqrt(m) - 1) ** 2
    torch.testing.assert_close(found, expected[None], rtol=1e-12, atol=1e-12)
    whole = GanLossConfig(penalty_norm="whole")
    found = gradient_penalty(Linear(weight), fake, real, draws, whole)
    assert found.item() == pytest.approx((13.0096118 / math.sqrt(m) - 1) ** 2, rel=1e-7)


def test_smoothness_and_diversity_as_the_paper_writes_them() -> None:
    """Two rows of 3 and 2 items; the sum has no padding in it."""
    logits = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [3.0, 1.0]], [[2.0, 2.0], [0.0, 1.0], [0, 0]]])
    padding = torch.tensor([[False] * 3, [False, False, True]])
    joined, fake = Joined(logits, padding, None), Rows(logits.softmax(-1), padding)
    config = GanLossConfig(smoothness="sum", diversity="entropy", padding="masked")
    discriminator = Linear(torch.zeros(2))
    found = generator_losses(discriminator, fake, joined, config)
    assert found["smoothness_loss"].item() == pytest.approx(0.5 * (1 + 10 + 5))
    p = float(logits.softmax(-1)[~padding][:, 0].mean())
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert found["diversity_loss"].item() == pytest.approx(4 * 2 * -entropy, rel=1e-5)
    theirs = generator_losses(discriminator, fake, joined, FAIRSEQ)
    assert theirs["smoothness_loss"].item() == pytest.approx(0.5 * 2 * 16 / 8)  # 2 x 2 x 2 places


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 8, 9, 10, 31])
def test_how_many_outputs(num_frames: int) -> None:
    features, padding = torch.randn(1, num_frames, 6), torch.zeros(1, num_frames, dtype=torch.bool)
    for config, expected in ((V1, num_frames + 1), (V2, math.ceil(num_frames / 3))):
        generator = Generator(config, 6, 5).eval()
        assert config.num_outputs(num_frames) == expected
        out = generator(features, padding)
        assert out.logits.shape == (1, expected, 5)
        assert not out.padding.any()
        assert generator(features, padding, 1).logits.shape[1] == config_outputs(config, num_frames)


def config_outputs(config: GeneratorConfig, num_frames: int) -> int:
    """At stride 1: an even kernel has one more."""
    return num_frames + (config.kernel_size % 2 == 0)


def test_a_stride_of_one_has_the_outputs_of_the_trained_one_among_its_own() -> None:
    generator = Generator(V2, 6, 5).eval()
    features, padding = torch.randn(2, 20, 6), torch.zeros(2, 20, dtype=torch.bool)
    padding[1, 13:] = True
    dense, sparse = (generator(features, padding, stride) for stride in (1, 3))
    torch.testing.assert_close(dense.logits[:, ::3], sparse.logits)
    assert torch.equal(dense.padding[:, ::3], sparse.padding)


def test_masks_of_outputs() -> None:
    padding = torch.arange(7) >= torch.tensor([7, 4])[:, None]
    v1 = Generator(V1, 6, 5)(torch.randn(2, 7, 6), padding).padding
    assert (~v1).sum(1).tolist() == [8, 5]  # moved to the right by one
    v2 = Generator(V2, 6, 5)(torch.randn(2, 7, 6), padding).padding
    assert v2.tolist() == [[False] * 3, [False, False, True]]


def test_batch_norm_is_of_frames_alone() -> None:
    generator = Generator(V2, 6, 5)
    assert generator.batch_norm is not None
    assert generator.batch_norm.weight.tolist() == [30.0] * 6
    features = torch.randn(2, 7, 6)
    padding = torch.arange(7) >= torch.tensor([7, 4])[:, None]
    features[1, 4:] = 1e3  # must not count
    frames = torch.cat([features[0], features[1, :4]])
    expected = 30 * (frames - frames.mean(0)) / (frames.var(0, unbiased=False) + 1e-5).sqrt()
    out = generator.normalized(features, padding)
    torch.testing.assert_close(out[~padding], expected)
    assert torch.equal(out[padding], features[padding])
    torch.testing.assert_close(generator.batch_norm.running_mean, 0.1 * frames.mean(0))


def test_padding_never_changes_the_score_of_a_row() -> None:
    discriminator = Discriminator(DiscriminatorConfig(dim=7, kernel_size=3), 5)
    alone = rows(6)
    more = torch.randn(1, 4, 5)
    padded = Rows(
        torch.cat([alone.items, more], 1),
        torch.cat([alone.padding, torch.ones(1, 4, dtype=torch.bool)], 1),
    )
    ours, theirs = (discriminator.outputs(r.items)[:, :6] for r in (padded, alone))
    torch.testing.assert_close(ours, theirs)
    scores = [discriminator(r.items, r.padding) for r in (padded, alone)]
    torch.testing.assert_close(*scores)
    torch.testing.assert_close(discriminator(alone.items), scores[1])


def test_the_discriminator_sees_sixteen_items_and_none_after() -> None:
    discriminator = Discriminator(DiscriminatorConfig(dim=7), 5)
    items = torch.randn(1, 40, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator.outputs(items)[0, 30], items)
    seen = gradient[0].abs().sum(1).nonzero().flatten().tolist()
    assert seen == [*range(15, 31)]


def slow_join(
    logits: Tensor, padding: Tensor, draws: Tensor | None
) -> tuple[list[list[int]], list[list[list[float]]], int]:
    """Members and items of each row, and the most runs where padding is one."""
    members, items, most = [], [], 0
    for row, pad, draw in zip(logits, padding, draws if draws is not None else logits, strict=True):
        symbols = row.argmax(-1).masked_fill(pad, -1).tolist()
        starts = [t for t in range(len(symbols)) if t == 0 or symbols[t] != symbols[t - 1]]
        most = max(most, len(starts))
        members.append([])
        items.append([])
        for j, (a, b) in enumerate(zip(starts, [*starts[1:], len(symbols)], strict=True)):
            if symbols[a] == -1:
                continue
            chosen = a + int((b - a) * draw[j]) if draws is not None else -1
            members[-1].append(chosen)
            item = row[chosen] if draws is not None else row[a:b].mean(0)
            items[-1].append(item.tolist())
    return members, items, most


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_joining_is_the_slow_one(data: st.DataObject) -> None:
    batch, outputs = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    sizes = torch.tensor([data.draw(st.integers(1, outputs)) for _ in range(batch)])
    padding = torch.arange(outputs) >= sizes[:, None]
    logits = torch.randint(0, 2, (batch, outputs, 3)).float() + torch.rand(batch, outputs, 3) / 9
    for draws in (torch.rand(batch, outputs), None):
        found = join(logits, padding, draws)
        members, items, most = slow_join(logits, padding, draws)
        assert found.logits.shape == (batch, most, 3)
        for row in range(batch):
            count = len(items[row])
            torch.testing.assert_close(found.logits[row, :count], torch.tensor(items[row]))
            assert not found.logits[row, count:].any()
            assert found.padding[row].tolist() == [False] * count + [True] * (most - count)
            if found.members is not None:
                expected = members[row] + [-1] * (most - count)
                assert found.members[row].tolist() == expected


def test_a_member_is_drawn_uniformly_and_alone_gets_gradient() -> None:
    logits = torch.zeros(1, 7, 2)
    logits[0, :2, 1] = logits[0, 5:, 1] = 1.0  # runs of 2, 3 and 2
    logits[0, 2:5, 0] = 1.0
    logits.requires_grad_()
    padding = torch.zeros(1, 7, dtype=torch.bool)
    grid = (torch.arange(300) + 0.5) / 300
    counts = torch.zeros(7)
    for draw in grid:
        joined = join(logits, padding, draw.expand(1, 7))
        assert joined.members is not None
        counts[joined.members[0]] += 1
    assert counts.tolist() == [150, 150, 100, 100, 100, 150, 150]
    (gradient,) = torch.autograd.grad(
        join(logits, padding, grid[:1].expand(1, 7)).logits.sum(), logits
    )
    assert gradient[0].sum(1).tolist() == [2, 0, 2, 0, 0, 2, 0]
    top = torch.tensor(1 - 2.0**-24).expand(1, 7)  # the largest draw there is
    joined = join(logits, padding, top)
    assert joined.members is not None
    assert joined.members.tolist() == [[1, 4, 6]]


def batch_of(sizes: list[int], dim: int = 6, **more: Any) -> GanBatch:
    torch.manual_seed(3)
    longest = max(sizes)
    padding = torch.arange(longest) >= torch.tensor(sizes)[:, None]
    features = torch.randn(len(sizes), longest, dim).masked_fill(padding[..., None], 0.0)
    values: dict[str, Any] = {
        "text": torch.randint(4, 7, (len(sizes), 8)),
        "alpha": torch.rand(len(sizes)),
        "join_draws": torch.rand(len(sizes), longest + 1),
        "targets": torch.randint(0, 4, (len(sizes), longest)).masked_fill(padding, -1),
    }
    return GanBatch(
        step=1,
        slot=0,
        num_targets=len(sizes),
        features=features,
        padding=padding,
        **{**values, **more},
    )


def wider(rows: Rows) -> Rows:
    """With three more positions of padding."""
    items = torch.cat([rows.items, torch.full((len(rows.items), 3, rows.items.shape[2]), 0.2)], 1)
    more = torch.ones(len(items), 3, dtype=torch.bool)
    return Rows(items, torch.cat([rows.padding, more], 1))


def test_masked_losses_know_no_padding_and_fairseq_s_do() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(dim=7, kernel_size=3), 5)
    logits, padding = torch.randn(3, 9, 5), torch.arange(9) >= torch.tensor([9, 7, 4])[:, None]
    joined = join(logits, padding, None)
    alpha = torch.rand(3)
    fake = Rows(joined.logits.softmax(-1), joined.padding)
    text = torch.tensor([[1, 4, 2, 3, 3, 0], [0, 2, 3, 4, 1, 1], [3, 4, 2, 1, 1, 1]])
    real = text_rows(text, 1, 5)
    targets = torch.tensor([[1, 2, 0, -1, -1], [2, 2, 2, 2, -1], [0, -1, -1, -1, -1]])
    aux = torch.randn(3, 5, 3)

    def terms(config: GanLossConfig, padded: bool) -> dict[str, float]:
        f, r, j = fake, real, joined
        if padded:
            f, r = wider(fake), wider(real)
            j = type(joined)(
                nn.functional.pad(joined.logits, (0, 0, 0, 3)), f.padding, joined.members
            )
        found = discriminator_losses(discriminator, f, r, alpha, config)
        found |= generator_losses(discriminator, f, j, config)
        more = (0, 3) if padded else (0, 0)
        wide = nn.functional.pad(targets, more, value=-1)
        found["auxiliary_loss"] = auxiliary_loss(
            nn.functional.pad(aux, (0, 0, *more)), wide, config
        )
        return {name: value.item() for name, value in found.items()}

    assert terms(MASKED, True) == pytest.approx(terms(MASKED, False), rel=1e-5)
    before, after = terms(FAIRSEQ, False), terms(FAIRSEQ, True)
    changed = {n for n in before if before[n] != pytest.approx(after[n], rel=1e-4)}
    means = {"gradient_penalty", "diversity_loss", "smoothness_loss", "auxiliary_loss"}
    assert changed == means


def test_losses_of_one_item_are_finite() -> None:
    discriminator = Discriminator(DiscriminatorConfig(dim=7, kernel_size=3), 5)
    for config in (FAIRSEQ, MASKED):
        joined = join(torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.bool), None)
        fake = Rows(joined.logits.softmax(-1), joined.padding)
        found = generator_losses(discriminator, fake, joined, config)
        assert all(value.isfinite() for value in found.values())
        assert found["smoothness_loss"] == 0


ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.mark.parametrize("turn", [GENERATOR, DISCRIMINATOR])
def test_one_network_moves_with_its_moments_and_gradients_are_clipped_together(turn: str) -> None:
    torch.manual_seed(0)
    config = GanConfig(generator=V2, num_targets=4)
    gan = Gan(config, FAIRSEQ, 6, 8)
    optimizer = GanOptimizerConfig(weight_decay=0.5, discriminator_weight_decay=0.5)
    modules: dict[str, nn.Module] = {GENERATOR: gan.generator, DISCRIMINATOR: gan.discriminator}
    groups = {
        GENERATOR: (modules[GENERATOR], optimizer),
        DISCRIMINATOR: (modules[DISCRIMINATOR], optimizer.discriminator),
    }
    engines = make_engines(groups, PlainEngineConfig(clip_norm=1e-3), 1, ALONE)
    other = DISCRIMINATOR if turn == GENERATOR else GENERATOR
    batch = batch_of([9, 5, 7])

    def step() -> float | None:
        engine = engines[turn]
        torch.manual_seed(5)
        engine.backward(gan.losses(batch, turn)["loss"] / 3)
        return engine.step(1e-2)

    before = {name: state(modules[name]) for name in modules}
    torch.manual_seed(5)  # of dropout
    (gan.losses(batch, turn)["loss"] / 3).backward()
    norms = {name: total_norm(module) for name, module in modules.items()}
    for module in modules.values():
        module.zero_grad()
    norm = step()
    assert norm == pytest.approx(math.hypot(*norms.values()), rel=1e-5)
    assert not engines[other].optimizer.state
    assert same(before[other], state(modules[other]))
    assert not same(before[turn], state(modules[turn]))
    assert [g["num_updates"] for g in engines[turn].optimizer.param_groups] == [1]
    # Of the clipped gradient alone: (1 - 0.5) of it, and its square times 1 - 0.98
    moments = [engines[turn].optimizer.state[p] for p in modules[turn].parameters()]
    first = torch.stack([s["exp_avg"].norm() / 0.5 for s in moments if s]).norm().item()
    assert first == pytest.approx(1e-3 * norms[turn] / norm, rel=1e-4)
    assert all(p.grad is None for m in modules.values() for p in m.parameters())
    step()
    assert same(before[other], state(modules[other]))


def total_norm(module: nn.Module) -> float:
    gradients = [p.grad.norm() for p in module.parameters() if p.grad is not None]
    return torch.stack(gradients).norm().item()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_gradients_of_both_turns_reach_both_networks() -> None:
    gan = Gan(GanConfig(), GanLossConfig(), 6, 8)
    for turn in (GENERATOR, DISCRIMINATOR):
        gan.losses(batch_of([9, 5, 7]), turn)["loss"].backward()
        for module in (gan.generator, gan.discriminator):
            assert all(p.grad is not None and p.grad.any() for p in module.parameters())
            module.zero_grad()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlainEngineConfig(precision="bf16"), "precision is bf16 but must be fp32"),
        (lambda: PlainEngineConfig(zero_stage=1), "zero_stage is 1 but must be 0"),
        (lambda: PlainEngineConfig(clip_norm=0), "clip_norm is 0 but must be positive"),
        (lambda: GeneratorConfig(stride=0), "stride is 0 but must be at least 1"),
        (lambda: GeneratorConfig(dropout=1), "dropout is 1 but must be in"),
        (lambda: GanLossConfig(penalty_weight=-1), "penalty_weight is -1 but must be at least 0"),
        (lambda: Generator(V1, 6, 5, 4), "generator.residual is false, but auxiliary targets"),
    ],
)
def test_settings_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

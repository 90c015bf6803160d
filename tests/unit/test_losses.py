"""Losses against the obvious implementation that copies every distractor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from w2v2dist.model.losses import (
    code_ids,
    contrastive_logits,
    contrastive_loss,
    diversity_loss,
    vector_ids,
)


def copied_logits(context: Tensor, targets: Tensor, distractors: Tensor) -> Tensor:
    rows = []
    for c, y, d in zip(context, targets, distractors, strict=True):
        candidates = torch.cat([y.unsqueeze(1), y[d]], dim=1)  # (M, 1 + K, F): the copy to avoid
        logits = torch.cosine_similarity(c.unsqueeze(1), candidates, dim=-1) / 0.1
        equal = (y[d] == y.unsqueeze(1)).all(-1)
        rows.append(torch.cat([logits[:, :1], logits[:, 1:].masked_fill(equal, -torch.inf)], 1))
    return torch.stack(rows)


def make(batch: int, num_masked: int, num_distractors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Context and targets (B, M, 16), some targets equal, and distractors (B, M, K)."""
    codebook = torch.randn(max(2, num_masked // 2), 16)
    targets = codebook[torch.randint(len(codebook), (batch, num_masked))]
    steps = torch.randint(1, num_masked, (batch, num_masked, num_distractors))
    distractors = (torch.arange(num_masked)[:, None] + steps) % num_masked
    return torch.randn(batch, num_masked, 16), targets, distractors


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    num_masked=st.integers(2, 12),
    num_distractors=st.integers(1, 9),
)
def test_logits_loss_and_gradients(
    seed: int, batch: int, num_masked: int, num_distractors: int
) -> None:
    torch.manual_seed(seed)
    context, targets, distractors = make(batch, num_masked, num_distractors)
    results = []
    for function in (
        lambda c, y: contrastive_logits(c, y, vector_ids(targets), distractors, 0.1),
        lambda c, y: copied_logits(c, y, distractors),
    ):
        c, y = context.clone().requires_grad_(), targets.clone().requires_grad_()
        logits = function(c, y)
        flat = logits.flatten(0, 1)
        loss = F.cross_entropy(flat, torch.zeros(len(flat), dtype=torch.long), reduction="sum")
        results.append((logits, loss, *torch.autograd.grad(loss, (c, y))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(contrastive_loss(results[0][0])[0], results[1][1])


def test_no_copy_of_the_distractors() -> None:
    """Nothing of (frames x distractors x width) is made, forward or backward."""
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in (out if isinstance(out, (tuple, list)) else [out])]
            storage = [t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)]
            largest = max([largest, *storage])
            return out

    torch.manual_seed(0)
    context, targets = torch.randn(2, 50, 256, requires_grad=True), torch.randn(2, 50, 256)
    distractors = torch.randint(0, 50, (2, 50, 100))
    with Largest():
        logits = contrastive_logits(context, targets, vector_ids(targets), distractors, 0.1)
        contrastive_loss(logits)[0].backward()
    assert 2 * 50 * 101 * 4 <= largest <= 2 * 50 * 256 * 8  # ids are hashed in 8 bytes


def test_correct_counts() -> None:
    logits = torch.tensor([[[3.0, 1, 2], [1, 3, 2], [2, 2, 2], [5, -torch.inf, 5]]])
    assert (
        contrastive_loss(logits)[1].item() == 2
    )  # all equal is no choice; a tie goes to the first


def test_no_masked_frames() -> None:
    empty = torch.zeros(2, 0, 16)
    distractors = torch.zeros(2, 0, 100, dtype=torch.int64)
    logits = contrastive_logits(empty, empty, vector_ids(empty), distractors, 0.1)
    assert logits.shape == (2, 0, 101)
    loss, correct = contrastive_loss(logits)
    assert loss.item() == correct.item() == 0


def test_diversity() -> None:
    assert diversity_loss(torch.tensor(640.0), 640).item() == 0
    assert diversity_loss(torch.tensor(2.0), 640).item() == pytest.approx(638 / 640)


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_ids_are_equal_exactly_where_values_are(seed: int) -> None:
    torch.manual_seed(seed)
    codes = torch.randint(0, 4, (1, 30, 2))
    same = (codes.unsqueeze(1) == codes.unsqueeze(2)).all(-1)
    ids = code_ids(codes, 4)
    assert torch.equal(ids.unsqueeze(1) == ids.unsqueeze(2), same)
    vectors = torch.randn(4, 4, 8)[codes[..., 0], codes[..., 1]]
    vectors[vectors.abs() < 0.1] = -0.0
    ids = vector_ids(vectors)
    same = (vectors.unsqueeze(1) == vectors.unsqueeze(2)).all(-1)
    assert torch.equal(ids.unsqueeze(1) == ids.unsqueeze(2), same)
    permuted = vector_ids(vectors.flip(-1))
    assert not torch.equal(ids, permuted)

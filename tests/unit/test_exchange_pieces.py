"""Gradients on their way while the backward pass computes: the same pieces in the same order,
whatever was skipped, and none before it is complete."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from w2v2dist.training import exchange
from w2v2dist.training.exchange import Exchange


class Work:
    """A piece of which every element is doubled when it has arrived: the sum of two processes."""

    def __init__(self, piece: Tensor) -> None:
        self.piece, self.seen = piece, piece.clone()

    def wait(self) -> None:
        assert torch.equal(self.piece, self.seen), "it changed after it was sent"
        self.piece *= 2


class Run:
    """Five layers whose gradients a hook adds to one flat tensor, as ZeRO 1 in bf16 does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.parameters = [*self.layers.parameters()]
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters) + 3)  # padded
        self.views = dict(zip(self.parameters, self.flat.split_with_sizes(
            [*(p.numel() for p in self.parameters), 3]), strict=False))  # fmt: skip
        for p in self.parameters:
            p.register_post_accumulate_grad_hook(self._add)
        self.last, self.sent = True, list[Work]()
        self.exchange = Exchange(
            self.layers, self.parameters, self.flat, lambda: self.last, self._send
        )

    def _add(self, p: Any) -> None:
        self.views[p] += p.grad.flatten()
        p.grad = None

    def _send(self, piece: Tensor) -> Work:
        self.sent.append(Work(piece))
        return self.sent[-1]

    def slot(self, x: Tensor, skipped: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        for i, layer in enumerate(self.layers):
            x = x if i in skipped else layer(x).tanh()
        x.sum().backward()


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PIECE", 42)  # a layer


def test_pieces_are_sent_while_the_last_backward_pass_runs() -> None:
    run, x = Run(), torch.randn(2, 6)
    for _ in range(2):  # steps
        run.flat.zero_()
        run.sent.clear()
        run.last = False
        run.slot(x)
        assert not run.sent
        expected = 2 * run.flat
        run.last = True
        run.slot(x)
        assert run.exchange.num_sent == 4  # the first layer's has just been completed
        assert torch.equal(run.flat, expected)
        run.exchange.finish()
        assert [len(work.piece) for work in run.sent] == [45, 42, 42, 42, 42]
        assert torch.equal(run.flat, 2 * expected)


@pytest.mark.parametrize("skipped", [{4}, {1, 2}, {0, 1, 2, 3, 4}])
def test_skipped_and_frozen_layers_are_not_waited_for(skipped: set[int]) -> None:
    run, x = Run(), torch.randn(2, 6).requires_grad_()
    run.slot(x, skipped)
    assert run.exchange.num_sent == (4 if skipped != {0, 1, 2, 3, 4} else 0)
    run.exchange.finish()
    assert len(run.sent) == 5
    with torch.no_grad():  # a frozen body: only the last layer learns
        for layer in run.layers[:4]:
            x = layer(x)
    run.layers[4](x).sum().backward()
    assert run.exchange.num_sent == 4
    run.exchange.finish()
    assert not any(run.exchange._waiting)


def test_a_parameter_that_is_used_elsewhere_is_found() -> None:
    run, x = Run(), torch.randn(2, 6)
    y = run.layers[1](x @ run.layers[3].weight)  # which comes to its end after layer 1's
    with pytest.raises(RuntimeError, match="outside of its own module's forward"):
        y.sum().backward()

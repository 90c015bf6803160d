"""The sum of gradients over processes, once a step, while the backward pass still computes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from w2v2dist.training.compiled import units

PIECE = 20_000_000  # elements that are sent together


def _send(piece: Tensor) -> Any:
    return dist.all_reduce(piece, async_op=True)


class Exchange:
    """Sums one flat tensor of gradients in which `parameters` lie one after another.

    Its pieces are sent from the last to the first, as a backward pass completes them: each as soon
    as all of its parameters have got their gradients, but for those of modules that did not run.
    What is not complete when the pass has ended is sent by `finish`. So every process sends the
    same pieces in the same order, whatever was skipped or frozen.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        flat: Tensor,
        is_last: Callable[[], bool],
        send: Callable[[Tensor], Any] = _send,
    ) -> None:
        """`is_last` says whether the pass that runs is the step's last. What fills `flat` is a
        hook of the parameters that was there before; nothing else may fill it after."""
        self._flat, self._is_last, self._send = flat, is_last, send
        self._first: list[int] = []  # element that each piece begins at
        self._piece: dict[int, int] = {}  # of every parameter, by its id
        offset = 0
        for parameter in parameters:
            if not self._first or offset - self._first[-1] >= PIECE:
                self._first.append(offset)
            self._piece[id(parameter)] = len(self._first) - 1
            offset += parameter.numel()
            hook: Any = parameter.register_post_accumulate_grad_hook
            hook(self._computed)
        for part, held in units(module):
            own = [id(p) for p in held if id(p) in self._piece]
            if own:
                part.register_forward_pre_hook(lambda _part, _args, own=own: self._run(own))
        self._begin()

    def _begin(self) -> None:
        self._waiting: list[set[int]] = [set() for _ in self._first]  # parameters of each piece
        self._sent: list[Any] = []

    def _run(self, own: list[int]) -> None:
        """A module is about to run: its parameters will get gradients."""
        if self._is_last() and torch.is_grad_enabled():
            for parameter in own:
                self._waiting[self._piece[parameter]].add(parameter)

    def _computed(self, parameter: Tensor) -> None:
        """A parameter's gradient is complete."""
        if not self._is_last():
            return
        number = self._piece[id(parameter)]
        if number > self._next:
            raise RuntimeError(
                "a gradient was computed after it had been sent to the other processes: its "
                "parameter is used outside of its own module's forward"
            )
        self._waiting[number].discard(id(parameter))
        while self._next > 0 and not self._waiting[self._next]:
            self._send_next()  # the first piece has the last gradients: `finish` sends it

    @property
    def _next(self) -> int:
        """The piece that is sent next."""
        return len(self._first) - 1 - len(self._sent)

    def _send_next(self) -> None:
        ends = [*self._first[1:], self._flat.numel()]
        self._sent.append(self._send(self._flat[self._first[self._next] : ends[self._next]]))

    @property
    def num_sent(self) -> int:
        """Pieces of this step that are on their way."""
        return len(self._sent)

    def finish(self) -> None:
        """Send the rest and wait until all is summed: after the step's last backward pass."""
        while self._next >= 0:
            self._send_next()
        for work in self._sent:
            work.wait()
        self._begin()

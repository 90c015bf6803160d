"""The segmenter of wav2vec-U: a run of outputs with the same most likely symbol becomes one item.

B rows, O outputs, V symbols, M items: the most runs of a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Joined:
    """Items of B rows, zero logits behind the last of a row.

    The padding of a row counts as one of its runs before it is removed, so M may be one more than
    the longest row has items: it enters the means of two losses and the length of the penalty's
    mixture, in the reference implementation as here.
    """

    logits: Tensor  # (B, M, V)
    padding: Tensor  # (B, M)
    members: Tensor | None  # (B, M) which output stands for the item, -1 behind; None: the mean


def join(logits: Tensor, padding: Tensor, draws: Tensor | None) -> Joined:
    """logits (B, O, V), padding (B, O). `draws` (B, O) from [0, 1): run j of a row is the one of
    its members that draw j points to, and gives its gradient to it alone; None: their mean."""
    symbols = logits.argmax(-1).masked_fill(padding, -1)
    begins = torch.ones_like(padding)
    begins[:, 1:] = symbols[:, 1:] != symbols[:, :-1]
    run = begins.long().cumsum(1) - 1  # (B, O): the number of each output's run
    num_items = int(run[:, -1].max()) + 1
    sizes = run.new_zeros(len(run), num_items).scatter_add_(1, run, torch.ones_like(run))
    empty = run.new_zeros(len(run), num_items, dtype=torch.bool)
    # Padding stands behind: its run is a row's last one
    empty = empty.scatter(1, run, padding) | (sizes == 0)
    if draws is None:
        sums = logits.new_zeros(len(run), num_items, logits.shape[-1])
        sums = sums.scatter_add(1, run.unsqueeze(-1).expand_as(logits), logits)
        items = sums / sizes.clamp(min=1).unsqueeze(-1)
        return Joined(items.masked_fill(empty.unsqueeze(-1), 0.0), empty, None)
    starts = sizes.cumsum(1) - sizes
    offsets = (sizes * draws[:, :num_items]).long()
    offsets = torch.minimum(offsets, (sizes - 1).clamp(min=0))
    members = (starts + offsets).masked_fill(empty, 0)
    items = logits.gather(1, members.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    items = items.masked_fill(empty.unsqueeze(-1), 0.0)
    return Joined(items, empty, members.masked_fill(empty, -1))

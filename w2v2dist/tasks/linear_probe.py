"""A linear CTC probe: how much of the letters a linear layer reads from features that stay as they
are. N utterances, T frames, E width, L labels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from w2v2dist.model.ctc import ctc_loss
from w2v2dist.runtime.keyed import keyed_rng

CHECKED_EVERY = 50  # steps
BATCH = 4  # utterances: on a CPU the loss of 16 takes a third of a second
Labelled = tuple[Tensor, Tensor]  # features (T, E) float32, token ids (L,) int64


class LinearProbe:
    """Logits (T, num_tokens) of features (T, E), each of which has mean 0 and variance 1 over the
    training's frames. It begins at zero, so no random number is drawn for it."""

    def __init__(self, training: Sequence[Labelled], num_tokens: int) -> None:
        frames = torch.cat([features for features, _ in training])
        self._mean, self._scale = frames.mean(0), frames.std(0, correction=0).clamp_min(1e-5)
        self._training, device = training, frames.device
        self.weight = torch.zeros(frames.shape[1], num_tokens, device=device, requires_grad=True)
        self.bias = torch.zeros(num_tokens, device=device, requires_grad=True)

    def __call__(self, features: Tensor) -> Tensor:
        normal = (features - self._mean) / self._scale
        return normal @ self.weight + self.bias

    def train(self, steps: int, lr: float, blank: int, going_on: Callable[[], bool]) -> bool:
        """Adam on the mean CTC loss of some utterances at a time, drawn by step alone; False where
        `going_on`, asked now and then, says no."""
        optimizer = torch.optim.Adam([self.weight, self.bias], lr=lr)
        for step in range(steps):
            if step % CHECKED_EVERY == 0 and not going_on():
                return False
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            size = min(BATCH, len(self._training))
            drawn = keyed_rng("probe", step).choice(len(self._training), size, replace=False)
            some = [self._training[i] for i in drawn.tolist()]
            logits = torch.nn.utils.rnn.pad_sequence([self(x) for x, _ in some], batch_first=True)
            lengths = [torch.tensor([len(part[k]) for part in some]) for k in (0, 1)]
            targets = torch.cat([ids for _, ids in some])
            loss = ctc_loss(logits, lengths[0], targets, lengths[1], blank) / size
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return True

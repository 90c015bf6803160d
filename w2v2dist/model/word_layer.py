"""Embeddings of words and the softmax over them, tied: for large vocabularies in clusters, the
rarer the words the narrower (Grave et al. 2017; Baevski and Auli 2018). N positions, V words, C
width of the model."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WordLayer(nn.Module):
    """Words to vectors, and vectors to the probabilities of words, by the same parameters.

    They are this module's own, and both ways are its forward: ZeRO 3 gathers a module's own
    parameters around its forward. In clusters (`cutoffs`: where those after the first begin) the
    first has the model's width C, each following one `factor` times less, and a projection to C;
    the first cluster's softmax has an output more for each of the others, and does not project.
    Every parameter has a gradient, of zeros where no word of its cluster was used: ranks that
    exchange other sets of gradients hang.
    """

    class_weight: Tensor  # (clusters - 1, C)

    def __init__(
        self, num_words: int, width: int, cutoffs: Sequence[int] = (), *, factor: int = 4
    ) -> None:
        super().__init__()
        if cutoffs and cutoffs[-1] >= num_words:
            raise ValueError(
                f"model.cutoffs is {list(cutoffs)} but the vocabulary has {num_words} words, and "
                "each cluster needs one: lower model.cutoffs, or set [] for a vocabulary as small "
                "as this"
            )
        self.width, self.bounds = width, (0, *cutoffs, num_words)
        for i, (first, last) in enumerate(itertools.pairwise(self.bounds)):
            narrow = width // factor**i
            embedding = nn.Parameter(torch.empty(last - first, narrow))
            nn.init.normal_(embedding, std=narrow**-0.5)
            self.register_parameter(f"embedding_{i}", embedding)
            if cutoffs:
                projection = nn.Parameter(torch.empty(width, narrow))
                nn.init.xavier_uniform_(projection)
                self.register_parameter(f"projection_{i}", projection)
        if cutoffs:
            self.class_weight = nn.Parameter(torch.empty(len(cutoffs), width))
            nn.init.xavier_uniform_(self.class_weight)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Words (…,) int64 -> vectors (…, C), times sqrt(C); or, with `targets` (N,), features
        (N, C) -> their negative log-likelihoods (nats) in fp32, (N,)."""
        return self._embed(x) if targets is None else self._nll(x, targets)

    def log_probs(self, features: Tensor) -> Tensor:
        """Natural logarithms of all words' probabilities in fp32: (N, C) -> (N, V)."""
        size = self.bounds[1]
        head = self._head(features).float().log_softmax(-1)
        tails = [
            self._tail(features, i).float().log_softmax(-1) + head[:, size + i - 1 : size + i]
            for i in range(1, self.num_clusters)
        ]
        return torch.cat([head[:, :size], *tails], -1)

    @property
    def num_clusters(self) -> int:
        """1 for a plain softmax."""
        return len(self.bounds) - 1

    def _parameter(self, name: str, i: int) -> Tensor:
        return getattr(self, f"{name}_{i}")  # type: ignore[no-any-return]

    def _embed(self, words: Tensor) -> Tensor:
        scale = math.sqrt(self.width)
        if self.num_clusters == 1:
            return F.embedding(words, self._parameter("embedding", 0)) * scale
        flat, first = words.flatten(), self._parameter("embedding", 0)
        out = first.new_empty(len(flat), self.width)
        for i, (low, high) in enumerate(itertools.pairwise(self.bounds)):
            (rows,) = torch.where((flat >= low) & (flat < high))
            narrow = F.embedding(flat[rows] - low, self._parameter("embedding", i))
            out = out.index_copy(0, rows, F.linear(narrow, self._parameter("projection", i)))
        return out.view(*words.shape, self.width) * scale

    def _head(self, features: Tensor) -> Tensor:
        """Logits of the first cluster, and one for each of the others."""
        logits = F.linear(features, self._parameter("embedding", 0))
        if self.num_clusters == 1:
            return logits
        return torch.cat([logits, F.linear(features, self.class_weight)], -1)

    def _tail(self, features: Tensor, i: int) -> Tensor:
        """Logits of cluster `i`'s words."""
        narrow = features @ self._parameter("projection", i)
        return F.linear(narrow, self._parameter("embedding", i))

    def _nll(self, features: Tensor, targets: Tensor) -> Tensor:
        size, in_head = self.bounds[1], targets
        for i in range(1, self.num_clusters):
            in_head = in_head.masked_fill(targets >= self.bounds[i], size + i - 1)
        out = F.cross_entropy(self._head(features).float(), in_head, reduction="none")
        for i in range(1, self.num_clusters):
            low = self.bounds[i]
            (rows,) = torch.where((targets >= low) & (targets < self.bounds[i + 1]))
            logits = self._tail(features[rows], i).float()
            out = out.index_add(
                0, rows, F.cross_entropy(logits, targets[rows] - low, reduction="none")
            )
        return out

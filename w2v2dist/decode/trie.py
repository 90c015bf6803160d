"""A lexicon as a tree of prefixes, in arrays. W spellings, N nodes, U units (words)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trie:
    """Nodes are numbered level by level from the root, 0, so that those below a node, in the order
    of their tokens, are neighbours: `first_child[n]` to `first_child[n + 1]`. The words that end at
    a node are `words[first_word[n]]` to `words[first_word[n + 1]]`."""

    token: Ints  # (N,), that leads to the node; -1 of the root
    first_child: Ints  # (N + 1,)
    first_word: Ints  # (N + 1,)
    words: Ints  # (W,) units
    best: NDArray[np.float64]  # (N,), the score of the best word at or below the node

    @property
    def num_nodes(self) -> int:
        return len(self.token)

    @classmethod
    def build(
        cls,
        spellings: Iterable[tuple[int, Sequence[int]]],
        scores: NDArray[np.float64],
        num_tokens: int,
        blank: int,
    ) -> "Trie":
        """Of (unit, its tokens), a unit with several spellings several times; `scores` (U,) are the
        units' at the start of a sentence. Raises ValueError for a spelling that cannot be said."""
        entries = list(spellings)
        _check(entries, len(scores), num_tokens, blank)
        units = np.array([unit for unit, _ in entries], np.int64)
        sizes = np.array([len(tokens) for _, tokens in entries], np.int64)
        letters = np.full((len(entries), int(sizes.max())), -1, np.int64)
        letters[np.arange(letters.shape[1]) < sizes[:, None]] = np.concatenate(
            [np.asarray(tokens, np.int64) for _, tokens in entries]
        )
        order = np.lexsort(letters.T[::-1])
        units, sizes, letters = units[order], sizes[order], letters[order]
        node, parent, token, levels = _nodes(letters, sizes)
        last = node[np.arange(len(node)), sizes - 1]
        by_node = np.argsort(last, kind="stable")
        best = _smear(last, scores[units], parent, levels)
        return cls(
            token=token,
            first_child=_starts(parent[1:], len(token)) + 1,
            first_word=_starts(last, len(token)),
            words=units[by_node],
            best=best,
        )


def _check(
    entries: list[tuple[int, Sequence[int]]], num_units: int, num_tokens: int, blank: int
) -> None:
    if not entries:
        raise ValueError("the lexicon is empty: a beam over words needs at least one")
    for unit, tokens in entries:
        if not 0 <= unit < num_units:
            raise ValueError(f"the lexicon has word {unit} but the language model {num_units}")
        if not len(tokens):
            raise ValueError(f"word {unit} of the lexicon has no token: leave it out")
        if not 0 <= min(tokens) <= max(tokens) < num_tokens or blank in tokens:
            raise ValueError(
                f"word {unit} of the lexicon is spelled {list(tokens)}, but must be in ids from 0 "
                f"to {num_tokens - 1} without the blank, {blank}: it is another alphabet's lexicon"
            )


def _nodes(letters: Ints, sizes: Ints) -> tuple[Ints, Ints, Ints, list[int]]:
    """The nodes of sorted spellings (W, L): each spelling's (W, L), their parents and tokens (N,),
    and the first node of each level."""
    width = letters.shape[1]
    differs = np.ones(letters.shape, bool)
    differs[1:] = np.logical_or.accumulate(letters[1:] != letters[:-1], axis=1)
    new = differs & (np.arange(width) < sizes[:, None])
    levels = [0, 1, *(1 + np.cumsum(new.sum(0))).tolist()]
    node = np.cumsum(new, 0) - 1 + np.array(levels[1:-1])
    above = np.concatenate([np.zeros((len(node), 1), np.int64), node[:, :-1]], 1)
    # In the order of levels, and of spellings within a level
    parent = np.concatenate([[-1], above.T[new.T]])
    token = np.concatenate([[-1], letters.T[new.T]])
    return node, parent, token, levels


def _starts(owners: Ints, num_nodes: int) -> Ints:
    """Where those of each node begin in a list that is sorted by owner, (N + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_nodes))])


def _smear(
    last: Ints, scores: NDArray[np.float64], parent: Ints, levels: list[int]
) -> NDArray[np.float64]:
    """The best score at or below each node; words spelled the same count together, as flashlight
    does it."""
    best = np.full(len(parent), -np.inf)
    np.logaddexp.at(best, last, scores)
    best = best.astype(np.float32).astype(np.float64)  # flashlight's precision
    for start, end in zip(levels[-2:0:-1], levels[:1:-1], strict=True):
        np.maximum.at(best, parent[start:end], best[start:end])
    return best

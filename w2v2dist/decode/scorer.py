"""The language model's side of a beam search: contexts that are computed once, many in one call of
the model. N contexts, U units, C width, P words before, V entries of the model's vocabulary."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from w2v2dist.data.alphabet import DELIMITER, Alphabet
from w2v2dist.data.vocabulary import END, SPECIAL, UNKNOWN, Vocabulary
from w2v2dist.decode.pool import Pool

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
START = 0  # the state of the empty context, of every scorer
MAX_NUMBERS = 2**28  # of the past, and of probabilities, in one call of the model: 1 GiB in fp32


class Scorer(Protocol):
    """Units (a lexicon's words, or an alphabet's tokens) in context. A state is a context: START
    is the empty one, and `children` gives the same (state, unit) the same number while both are in
    use. Scores are logarithms of probabilities, so at most 0: the search relies on it."""

    @property
    def num_units(self) -> int: ...

    def scores(self, states: Ints, units: Ints) -> Floats:
        """Of each unit after each state, (N,), (N,) -> (N,)."""
        ...

    def finish(self, states: Ints) -> Floats:
        """Of the sentence's end after each state, (N,) -> (N,)."""
        ...

    def children(self, states: Ints, units: Ints) -> Ints:
        """The states after each unit, (N,), (N,) -> (N,)."""
        ...

    def keep(self, states: Ints) -> None:
        """From now on only these states, those before them and those after them are asked for."""
        ...


def start_scores(scorer: Scorer) -> Floats:
    """(U,) of all units at the start of a sentence, as a trie needs them."""
    units = np.arange(scorer.num_units)
    return scorer.scores(np.full(len(units), START), units)


def token_names(alphabet: Alphabet) -> list[str]:
    """An alphabet's tokens as a vocabulary of tokens writes them, the delimiter as |: units of a
    search without a lexicon."""
    return [DELIMITER if i == alphabet.delimiter else t for i, t in enumerate(alphabet.tokens)]


def unit_ids(units: Sequence[str], vocabulary: Vocabulary) -> tuple[list[int], int]:
    """The model's id of each unit, and how many units it does not know: these, and what it uses as
    special symbols, are <unk> to it."""
    found = [vocabulary.id_of(unit) for unit in units]
    ids = [UNKNOWN if i is None or i < len(SPECIAL) else i for i in found]
    return ids, sum(i is None for i in found)


class StepModel(Protocol):
    """What a language model must do to be cached: model/language_model.py has one."""

    def eval(self) -> Any: ...

    def no_past(self, num_sequences: int) -> Tensor: ...

    def step(self, tokens: Tensor, past: Tensor, past_length: Tensor) -> tuple[Tensor, Tensor]: ...

    def log_probs(self, features: Tensor) -> Tensor: ...


class TransformerScorer:
    """Any model that makes a step at a time. A context's keys and values are kept once and serve
    all that begin with it; its log-probabilities are kept while a hypothesis ends with it."""

    def __init__(self, model: StepModel, ids: Sequence[int], max_idle: int = 1024) -> None:
        """`ids` (U,): the model's of each unit. `max_idle`: contexts that may wait for their
        removal, or as many as are in use where that is more. Turns the model's dropout off."""
        model.eval()
        self.model, self.num_units, self.max_idle = model, len(ids), max_idle
        past = model.no_past(1)
        self._device = past.device
        self._ids = torch.tensor([*ids, END], device=self._device)  # the end is the last unit
        self._caches = Pool((past.shape[0],), tuple(past.shape[3:]), past)
        self._rows = Pool((), (self.num_units + 1,), past.float())
        # Per state: the state before and the unit between; the children; the place of its row; its
        # contexts' places in the caches, its own last, once they are computed
        self._parent, self._unit = {START: START}, {START: self.num_units}
        self._children: dict[tuple[int, int], int] = {}
        self._row: dict[int, int] = {}
        self._path: dict[int, Ints] = {}
        self._next, self._limit = START + 1, max_idle
        self.num_calls, self.num_computed = 0, 0  # of the model, and contexts in them

    @property
    def num_states(self) -> int:
        """Contexts that are known."""
        return len(self._parent)

    def scores(self, states: Ints, units: Ints) -> Floats:
        """As Scorer's; contexts that were not asked for before are computed in one call."""
        if not len(states):
            return np.zeros(0)
        asked, which = np.unique(states, return_inverse=True)
        if missing := [state for state in asked.tolist() if state not in self._row]:
            self._compute(missing)
        rows = np.array([self._row[state] for state in asked.tolist()])[which]
        places, columns = (torch.tensor(a, device=self._device) for a in (rows, units.tolist()))
        return self._rows.data[places, columns].double().cpu().numpy()

    def finish(self, states: Ints) -> Floats:
        """As Scorer's."""
        return self.scores(states, np.full(len(states), self.num_units))

    def children(self, states: Ints, units: Ints) -> Ints:
        """As Scorer's."""
        out = []
        for pair in zip(states.tolist(), units.tolist(), strict=True):
            state = self._children.get(pair)
            if state is None:
                state = self._children[pair] = self._next
                self._parent[state], self._unit[state] = pair
                self._next += 1
            out.append(state)
        return np.array(out, np.int64)

    def keep(self, states: Ints) -> None:
        """As Scorer's; the rest is removed once it is much."""
        current = {START, *states.tolist()}
        if len(self._row) > 2 * len(current) + 64:
            self._rows.free([self._row.pop(s) for s in [*self._row] if s not in current])
        if len(self._parent) < self._limit:
            return
        used = set(current)
        for state in current:
            while (state := self._parent[state]) not in used:
                used.add(state)
        gone = self._parent.keys() - used
        for state in gone:
            del self._children[self._parent.pop(state), self._unit.pop(state)]
        self._rows.free([self._row.pop(s) for s in [*self._row] if s in gone])
        paths = [self._path.pop(s) for s in [*self._path] if s in gone]
        self._caches.free([int(path[-1]) for path in paths])
        self._limit = max(2 * len(used), len(used) + self.max_idle)

    @torch.inference_mode()
    def _compute(self, states: list[int]) -> None:
        """Rows, keys and values of contexts; those before them are computed where they are not."""
        parents = {self._parent[s] for s in states if s != START}
        if before := [state for state in parents if state not in self._path]:
            self._compute(before)
            states = [state for state in states if state not in self._row]
        deepest = max(len(self._path[self._parent[s]]) if s != START else 0 for s in states)
        largest = max(deepest * self._caches.row_size, self._rows.row_size)
        size = max(1, MAX_NUMBERS // largest)
        for first in range(0, len(states), size):
            self._step(states[first : first + size])

    def _step(self, states: list[int]) -> None:
        """As _compute, in one call of the model."""
        none = np.zeros(0, np.int64)
        paths = [self._path[self._parent[s]] if s != START else none for s in states]
        lengths = np.array([len(path) for path in paths])
        places = np.zeros((len(states), lengths.max()), np.int64)
        places[np.arange(places.shape[1]) < lengths[:, None]] = np.concatenate(paths)
        tokens = self._ids[[self._unit[s] for s in states]]
        past = self._caches.data[:, torch.from_numpy(places).to(self._device)]
        self.num_calls += 1
        self.num_computed += len(states)
        features, new = self.model.step(tokens, past, torch.from_numpy(lengths).to(self._device))
        rows = self.model.log_probs(features).index_select(1, self._ids)
        for state, row in zip(states, self._rows.put(rows), strict=True):
            self._row[state] = row
        if again := [i for i, s in enumerate(states) if s in self._path]:  # rows that came back
            fresh = [i for i in range(len(states)) if i not in {*again}]
            states, paths = [states[i] for i in fresh], [paths[i] for i in fresh]
            new = new[:, fresh]
        for state, path, place in zip(states, paths, self._caches.put(new), strict=True):
            self._path[state] = np.append(path, place)

"""How hypotheses of a beam go on in a frame: along a lexicon, or with any token.

A utterances, M hypotheses, V tokens."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.trie import Trie

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# A hypothesis. `context` stands for the state of the language model that it has or, where a unit
# was just added, will have: state before and unit in one number, so that no state need be made for
# what does not stay in the beam
RECORD = np.dtype(
    [
        ("utterance", np.int64),
        ("score", np.float64),
        ("am", np.float64),
        ("lm", np.float64),
        ("state", np.int64),  # of the language model
        ("context", np.int64),
        ("node", np.int64),  # of the lexicon
        ("token", np.int64),  # the last
        ("blank", np.bool_),  # whether that is the blank
        ("place", np.int64),  # in its frame
        ("parent", np.int64),  # its place in the frame before
        ("unit", np.int64),  # that this frame added, or -1
    ],
    align=True,
)
Records = np.ndarray  # of RECORD


@dataclass(frozen=True, slots=True)
class Moves:
    """New tokens that hypotheses may take in a frame."""

    parent: Ints  # the place of the hypothesis in the beam
    token: Ints
    node: Ints  # of the lexicon, that the token leads to


@dataclass(frozen=True, slots=True)
class TokenExtender:
    """Any token may follow, and is a unit. Blanks and repeats, too, are taken only where they are
    among the best of a frame, as flashlight does it."""

    num_tokens: int
    num_units: int
    blank: int
    config: BeamConfig
    has_words: bool = False

    def moves(self, beam: Records, emissions: Floats) -> Moves:
        """New tokens after the hypotheses of a beam in a frame with log-probabilities (A, V)."""
        token = _best_tokens(emissions, self.config.beam_size_token)[beam["utterance"]]
        new = (token != beam["token"][:, None]) | beam["blank"][:, None]
        parent, column = np.nonzero(new & (token != self.blank))
        return Moves(parent, token[parent, column], np.zeros(len(parent), np.int64))

    def plain(self, beam: Records, emissions: Floats, moves: Moves) -> Records:
        """What follows without a new unit."""
        allowed = _allowed(emissions, self.config.beam_size_token)
        token = beam["token"]
        repeat = np.flatnonzero(allowed[beam["utterance"], token] & (token != self.blank))
        blank = np.flatnonzero(allowed[beam["utterance"], self.blank])
        blanks = _follow(beam, blank, np.full(len(blank), self.blank), emissions)
        blanks["blank"] = True
        return np.concatenate([_follow(beam, repeat, token[repeat], emissions), blanks])

    def scored(self, beam: Records, emissions: Floats, moves: Moves, bar: Floats) -> Records:
        """What follows with a new unit, whose score is still to be added: `state` is that before
        the unit. Only hypotheses that are not below the `bar` (A,) of their utterance."""
        utterance = beam["utterance"][moves.parent]
        score = beam["score"][moves.parent] + emissions[utterance, moves.token]
        high = np.flatnonzero(score >= bar[utterance])
        token = moves.token[high]
        out = _follow(beam, moves.parent[high], token, emissions)
        return _with_unit(out, token, self.num_units)

    def place(self, records: Records) -> Ints:
        """A number for all that tells hypotheses apart beside the context."""
        key = records["utterance"] * self.num_tokens + records["token"]
        return key * 2 + records["blank"]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class LexiconExtender:
    """Only words of a lexicon, which are the units. Inside a word the best score of what it could
    become stands for the language model's. The blank, and the silence between words, are taken
    whether or not they are among the best of a frame."""

    num_tokens: int
    num_units: int
    blank: int
    config: BeamConfig
    trie: Trie
    silence: int
    has_words: bool = True

    def moves(self, beam: Records, emissions: Floats) -> Moves:
        """As TokenExtender's."""
        parent, node = _members(self.trie.first_child, beam["node"])
        token = self.trie.token[node]
        if self.config.beam_size_token < self.num_tokens:
            allowed = _allowed(emissions, self.config.beam_size_token)
            fits = np.flatnonzero(allowed[beam["utterance"][parent], token])
            parent, node, token = parent[fits], node[fits], token[fits]
        return Moves(parent, token, node)

    def plain(self, beam: Records, emissions: Floats, moves: Moves) -> Records:
        """As TokenExtender's."""
        root = beam["node"] == 0
        stays = np.flatnonzero(~beam["blank"] | root)
        token = np.where(root, self.silence, beam["token"])[stays]
        same = _follow(beam, stays, token, emissions)
        every = np.arange(len(beam))
        blanks = _follow(beam, every, np.full(len(beam), self.blank), emissions)
        blanks["blank"] = True
        new = beam["blank"][moves.parent] | (moves.token != beam["token"][moves.parent])
        goes_on = self.trie.first_child[moves.node + 1] > self.trie.first_child[moves.node]
        inner = np.flatnonzero(new & goes_on)
        parent, node = moves.parent[inner], moves.node[inner]
        longer = _follow(beam, parent, moves.token[inner], emissions)
        longer["node"] = node
        gain = self.trie.best[node] - self._promised(beam)[parent]
        longer["lm"] += gain
        longer["score"] += self.config.lm_weight * gain
        return np.concatenate([same, blanks, longer])

    def scored(self, beam: Records, emissions: Floats, moves: Moves, bar: Floats) -> Records:
        """As TokenExtender's."""
        # A word of one token is not said again by the frames in which the token lasts
        lasts = (beam["node"] == 0)[moves.parent] & (beam["token"][moves.parent] == moves.token)
        which, place = _members(self.trie.first_word, np.where(lasts, -1, moves.node))
        unit, parent, token = self.trie.words[place], moves.parent[which], moves.token[which]
        utterance, promised = beam["utterance"][parent], self._promised(beam)[parent]
        gain = self.config.word_score - self.config.lm_weight * promised
        score = beam["score"][parent] + emissions[utterance, token] + gain
        high = np.flatnonzero(score >= bar[utterance])
        out = _follow(beam, parent[high], token[high], emissions)
        out["node"] = 0
        out["lm"] -= promised[high]
        out["score"] += gain[high]
        return _with_unit(out, unit[high], self.num_units)

    def place(self, records: Records) -> Ints:
        """As TokenExtender's."""
        key = records["utterance"] * self.trie.num_nodes + records["node"]
        return (key * self.num_tokens + records["token"]) * 2 + records["blank"]  # type: ignore[no-any-return]

    def _promised(self, beam: Records) -> Floats:
        """What hypotheses have for the word that they are in."""
        return np.where(beam["node"] == 0, 0.0, self.trie.best[beam["node"]])


def _best_tokens(emissions: Floats, num: int) -> Ints:
    """(A, V) -> (A, the smaller of V and num)."""
    if num >= emissions.shape[1]:
        return np.broadcast_to(np.arange(emissions.shape[1]), emissions.shape)
    return np.argpartition(-emissions, num - 1, axis=1)[:, :num]


def _allowed(emissions: Floats, num: int) -> NDArray[np.bool_]:
    """The same as a mask (A, V)."""
    out = np.zeros(emissions.shape, bool)
    np.put_along_axis(out, _best_tokens(emissions, num), True, axis=1)
    return out


def _members(first: Ints, owners: Ints) -> tuple[Ints, Ints]:
    """All that owners (M,) own in a list where the part of owner n begins at first[n]; none of
    owner -1. Returns the owner's place and the member's, for each member."""
    starts = first[owners]
    counts = np.where(owners < 0, 0, first[owners + 1] - starts)
    which = np.repeat(np.arange(len(owners)), counts)
    before = np.cumsum(counts) - counts
    return which, np.arange(len(which)) + (starts - before)[which]


def _follow(beam: Records, parent: Ints, token: Ints, emissions: Floats) -> Records:
    """The hypotheses at these places of the beam with one more token each."""
    out = beam[parent]
    gain = emissions[out["utterance"], token]
    out["score"] += gain
    out["am"] += gain
    out["token"], out["blank"], out["unit"] = token, False, -1
    out["parent"] = out["place"]
    return out


def _with_unit(records: Records, unit: Ints, num_units: int) -> Records:
    """The same after a unit was added."""
    records["context"] = records["state"] * (num_units + 1) + unit + 1
    records["unit"] = unit
    return records


Extender = TokenExtender | LexiconExtender

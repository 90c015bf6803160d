"""The beam with an n-gram: the same as torchaudio's ctc_decoder, whatever the alphabet."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.models.decoder import ctc_decoder

from benchmarks.simulated import Noise, emission
from tests.lm_files import spelled, write_arpa
from w2v2dist.data.alphabet import Alphabet, alphabet, of_symbols
from w2v2dist.decode.beam_config import BeamConfig, Hypothesis
from w2v2dist.decode.ngram_beam import NgramBeam
from w2v2dist.decode.searchable import Searchable
from w2v2dist.lm.lexicon import Lexicon

LETTERS = alphabet("letters")
SENTENCES = ["THE CAT SAT ON THE MAT", "A CAT ATE THE RAT", "THE RAT SAT", "A MAT IS FLAT"]
WORDS = [*dict.fromkeys(" ".join(SENTENCES).split())]
NOISE = Noise(strength=5, confusion=0.3, rival=5)
# The blank is not the first, the delimiter the first; none has words written together
OTHER = Alphabet(tokens=("|", *"abc", "<pad>", "de"), blank=4, special=frozenset({4}), delimiter=0)
TOGETHER = of_symbols("的是不了在")


def beam(**values: float) -> BeamConfig:
    return BeamConfig(**{"beam_size": 20, "lm_weight": 1.5, "word_score": -0.3, **values})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arpa(tmp_path_factory.mktemp("lm") / "words.arpa", SENTENCES)


def theirs(
    found: Alphabet, arpa: Path | None, lexicon: Lexicon | None, config: BeamConfig, folder: Path
) -> object:
    """torchaudio's decoder, whose files name tokens by their ids."""
    names = [f"t{i}" for i in range(found.num_tokens)]
    path = lm_dict = None
    if lexicon is not None:
        path = folder / "lexicon.txt"
        rows = [(w, s) for w, several in lexicon.spellings.items() for s in several]
        path.write_text("".join(f"{w}\t{' '.join(names[i] for i in s)}\n" for w, s in rows))
    else:
        lm_dict = folder / "dict.txt"
        units = ["|" if i == found.delimiter else t for i, t in enumerate(found.tokens)]
        lm_dict.write_text("".join(f"{unit}\n" for unit in units))
    return ctc_decoder(
        lexicon=path and str(path),
        tokens=names,
        lm=arpa and str(arpa),
        lm_dict=lm_dict and str(lm_dict),
        nbest=5,
        beam_size=config.beam_size,
        beam_size_token=min(config.beam_size_token, found.num_tokens),
        beam_threshold=config.beam_threshold,
        lm_weight=config.lm_weight,
        word_score=config.word_score,
        blank_token=names[found.blank],
        sil_token=names[found.delimiter or 0],
    )


@pytest.mark.parametrize(
    "values", [{}, {"beam_size": 3}, {"beam_size_token": 4, "beam_threshold": 8}, {"lm_weight": 0}]
)
def test_as_torchaudio_over_a_lexicon(arpa: Path, tmp_path: Path, values: dict[str, float]) -> None:
    config = beam(**values)
    lexicon = Lexicon.from_words(WORDS, LETTERS)
    reference = theirs(LETTERS, arpa, lexicon, config, tmp_path)
    decoder = NgramBeam(LETTERS, arpa, lexicon, 1)
    emissions = [emission(text, i, LETTERS, NOISE) for i, text in enumerate(SENTENCES * 3)]
    for values_, found in zip(emissions, decoder.decode(emissions, config, 5), strict=True):
        ready = Searchable(LETTERS, lexicon).ready(values_)
        for ours, their in zip(found, reference(torch.from_numpy(ready)[None])[0], strict=True):  # type: ignore[operator]
            assert list(ours.words) == their.words
            assert ours.score == pytest.approx(their.score, abs=1e-3)
            parts = ours.am_score + config.lm_weight * ours.lm_score
            assert ours.score == pytest.approx(
                parts + config.word_score * len(ours.words), abs=1e-3
            )
            assert LETTERS.decode(ours.path) == " ".join(ours.words)
            assert len(ours.path) == len(values_)


def test_as_torchaudio_over_tokens(tmp_path: Path) -> None:
    arpa = write_arpa(tmp_path / "letters.arpa", [spelled(s, LETTERS) for s in SENTENCES], 3)
    config = beam(lm_weight=1.0)
    reference = theirs(LETTERS, arpa, None, config, tmp_path)
    decoder = NgramBeam(LETTERS, arpa, None, 1)
    for i, text in enumerate(SENTENCES):
        values = emission(text, i, LETTERS, NOISE)
        (found,) = decoder.decode([values], config, 5)
        ready = Searchable(LETTERS, None).ready(values)
        (their,) = reference(torch.from_numpy(ready)[None])  # type: ignore[operator]
        assert [h.score for h in found] == pytest.approx([h.score for h in their], abs=1e-3)
        text_of = LETTERS.decode(their[0].tokens.tolist(), collapse=False)
        assert LETTERS.decode(found[0].path) == text_of


def test_a_language_model_helps(arpa: Path) -> None:
    """More noise than a greedy decoder bears; the lexicon and the n-gram read it."""
    decoder = NgramBeam(LETTERS, arpa, Lexicon.from_words(WORDS, LETTERS), 1)
    emissions = [emission(text, i, LETTERS, NOISE) for i, text in enumerate(SENTENCES * 5)]
    greedy = [LETTERS.decode(e.argmax(-1).tolist()) for e in emissions]
    found = [LETTERS.decode(h[0].path) for h in decoder.decode(emissions, beam())]
    right = [
        sum(a == b for a, b in zip(texts, SENTENCES * 5, strict=True)) for texts in (greedy, found)
    ]
    assert right[0] < 4
    assert right[1] > 14


@pytest.mark.parametrize("spelling", [OTHER, TOGETHER], ids=["other ids", "written together"])
def test_any_alphabet(spelling: Alphabet, tmp_path: Path) -> None:
    words = ["abc", "dea", "bb"] if spelling is OTHER else ["的", "是不", "了在的"]
    sentences = [" ".join(words), " ".join(words[::-1]), " ".join(words[1:])]
    arpa = write_arpa(tmp_path / "x.arpa", sentences)
    decoder = NgramBeam(spelling, arpa, Lexicon.from_words(words, spelling), 1)
    said = [s if spelling is OTHER else s.replace(" ", "") for s in sentences]
    for i, text in enumerate(said):
        values = emission(text, i, spelling, Noise(strength=9, confusion=0))
        (found,) = decoder.decode([values], beam(lm_weight=0.5))
        assert " ".join(found[0].words) == sentences[i]
        assert spelling.decode(found[0].path) == text


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_tokens_that_last(frames: int) -> None:
    """Phones, words of one of them, without blanks between: each lasts as long as it is heard."""
    phones = of_symbols(("ah", "iy", "ow"), units="phones")
    spelled_as = {"A": [(4,)], "I": [(5,)], "O": [(6,)]}
    path = [0, *[4] * frames, *[5] * frames, *[6] * frames, 0]
    values = np.full((len(path), 7), np.log(0.01 / 6), np.float32)
    values[range(len(path)), path] = np.log(0.99)
    (found,) = NgramBeam(phones, None, Lexicon(spelled_as), 1).decode([values], beam(lm_weight=0))
    assert found[0].words == ("A", "I", "O")
    assert phones.decode(found[0].path) == "ah iy ow"
    assert found[0].am_score == pytest.approx(len(path) * np.log(0.99), abs=1e-3)


def test_words_that_the_language_model_lacks_are_said(arpa: Path) -> None:
    lexicon = Lexicon.from_words([*WORDS, "HELLO", "WORLD"], LETTERS)
    assert NgramBeam(LETTERS, arpa, lexicon, 1).notes[0].startswith("2 words of the lexicon")
    assert not NgramBeam(LETTERS, arpa, Lexicon.from_words(WORDS, LETTERS), 1).notes


def test_workers_end_with_a_killed_parent(arpa: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; import numpy as np\n"
        "from tests.unit.test_ngram_beam import *\n"
        "lexicon = Lexicon.from_words(WORDS, LETTERS)\n"
        f"decoder = NgramBeam(LETTERS, Path({str(arpa)!r}), lexicon, 2)\n"
        "values = emission('THE CAT', 0, LETTERS, NOISE)\n"
        "list(decoder.decode([values] * 9, beam()))\n"
        "print(*decoder._pool._executor._processes, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        workers = [*map(int, process.stdout.readline().split())]
        assert workers
        process.kill()
    deadline = time.monotonic() + 30
    while (alive := [w for w in workers if _lives(w)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_special_tokens_are_never_said(tmp_path: Path) -> None:
    """The best of every frame, in a search over tokens."""
    arpa = write_arpa(tmp_path / "letters.arpa", [spelled(s, LETTERS) for s in SENTENCES])
    values = emission("THE CAT", 0, LETTERS, Noise(strength=9, confusion=0))
    values[:, LETTERS.tokens.index("<unk>")] = 0
    (found,) = NgramBeam(LETTERS, arpa, None, 1).decode([values], beam(lm_weight=0.5))
    assert LETTERS.decode(found[0].path) == "THE CAT"
    assert not {*found[0].path} & (LETTERS.special - {LETTERS.blank})


def test_processes_find_the_same(arpa: Path) -> None:
    lexicon = Lexicon.from_words(WORDS, LETTERS)
    emissions = [emission(text, i, LETTERS, NOISE) for i, text in enumerate(SENTENCES * 3)]
    alone, several = (NgramBeam(LETTERS, arpa, lexicon, n) for n in (1, 3))
    assert [*several.decode(emissions, beam(), 3)] == [*alone.decode(emissions, beam(), 3)]
    # the same processes with other weights
    config = beam(lm_weight=0.2)
    assert [*several.decode(emissions, config)] == [*alone.decode(emissions, config)]
    several.close()


def test_defined_results(arpa: Path) -> None:
    decoder = NgramBeam(LETTERS, arpa, Lexicon.from_words(WORDS, LETTERS), 1)
    (nothing,) = decoder.decode([np.zeros((0, 32), np.float32)], beam())
    assert [h.path for h in nothing] == [()]
    assert nothing[0].words == ()
    quiet = np.full((30, 32), -20, np.float32)
    quiet[:, LETTERS.blank] = -1e-3
    (silent,) = decoder.decode([quiet], beam())
    assert silent[0].words == ()
    for bad in (np.nan, np.inf, -np.inf):
        broken = quiet.copy()
        broken[3, 4] = bad
        with pytest.raises(ValueError, match="hold NaN or infinity"):
            next(decoder.decode([broken], beam()))


def test_mistakes(arpa: Path, tmp_path: Path) -> None:
    lexicon = Lexicon.from_words(WORDS, LETTERS)
    with pytest.raises(ValueError, match="has none of the words of the lexicon"):
        NgramBeam(LETTERS, arpa, Lexicon.from_words(["HELLO", "WORLD"], LETTERS), 1)
    with pytest.raises(ValueError, match="has none of the symbols of the alphabet"):
        NgramBeam(LETTERS, write_arpa(tmp_path / "none.arpa", ["HELLO WORLD"]), None, 1)
    for content in (
        b"",
        b"no model",
        arpa.read_bytes()[:200],
        b"mmap lm http://kheafield.com/code",
    ):
        (tmp_path / "broken.arpa").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"broken\.arpa cannot be opened as an n-gram of KenLM"
        ):
            NgramBeam(LETTERS, tmp_path / "broken.arpa", lexicon, 1)
    for values, message in (
        ({"beam_size": 0}, "beam_size is 0 but must be at least 1"),
        ({"lm_weight": float("nan")}, "lm_weight is nan but must be a finite number"),
        ({"word_score": float("inf")}, "word_score is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            beam(**values)


def test_hypotheses_are_plain(arpa: Path) -> None:
    decoder = NgramBeam(LETTERS, arpa, Lexicon.from_words(WORDS, LETTERS), 1)
    (found,) = decoder.decode([emission("THE CAT", 0, LETTERS, NOISE)], beam(), 3)
    assert 1 <= len(found) <= 3
    assert found == sorted(found, key=lambda h: -h.score)
    assert all(isinstance(h, Hypothesis) for h in found)
    assert dataclasses.asdict(found[0])["words"] == found[0].words

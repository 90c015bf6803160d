"""n-grams: the numbers of KenLM's lmplz, ARPA files, and the command."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tests.fuzz import EXAMPLES, fuzz
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.lm.arpa import Arpa, arpa_words, read_arpa, sniff
from w2v2dist.lm.kneser_ney import estimate, read_corpus, write_arpa
from w2v2dist.lm.ngram import _target, available_memory, complaint

GOLDEN = Path(__file__).parents[1] / "golden/ngram"
TEXT = (GOLDEN / "text.txt").read_bytes()
TOLERANCE = 2e-6  # in log10: lmplz adds and writes in single precision
# With KenLM on the PATH more is tested, without it nothing is skipped
ESTIMATORS = ["own", *["lmplz"] * bool(shutil.which("lmplz"))]
KINDS = [".arpa", ".arpa.gz", *[".bin"] * bool(shutil.which("build_binary"))]


def letters(num_sentences: int) -> bytes:
    """The text's first sentences in letters."""
    lines = TEXT.decode().splitlines()[:num_sentences]
    return "".join(" ".join(line.replace(" ", "|")) + "\n" for line in lines).encode()


def arpa(text: bytes, order: int, prune: tuple[int, ...] = (0,), words: Any = None) -> bytes:
    """Our estimate as ARPA."""
    corpus = read_corpus(line for line in text.split(b"\n") if line.strip())
    out = io.BytesIO()
    write_arpa(out, corpus.words, estimate(corpus, order, prune, words))
    return out.getvalue()


def read(content: bytes, tmp_path: Path) -> Arpa:
    (tmp_path / "read.arpa").write_bytes(content)
    return read_arpa(tmp_path / "read.arpa")


def assert_close(ours: Arpa, theirs: Arpa) -> None:
    assert ours.words == theirs.words
    assert ours.order == theirs.order
    for mine, other in zip(ours.grams, theirs.grams, strict=True):
        assert [*mine] == [*other], "the same n-grams in the same order"
        pairs = zip(mine.values(), other.values(), strict=True)
        worst = max((abs(a - b) for two in pairs for a, b in zip(*two, strict=True)), default=0)
        assert worst < TOLERANCE


@pytest.mark.parametrize(
    ("name", "text", "order", "prune"),
    [
        ("words_4", TEXT, 4, (0,)),
        ("words_3_pruned", TEXT, 3, (0, 0, 1)),
        ("letters_5_pruned", letters(60), 5, (0, 1, 2)),
    ],
)
def test_numbers_are_those_of_lmplz(
    name: str, text: bytes, order: int, prune: tuple[int, ...], tmp_path: Path
) -> None:
    theirs = read_arpa(GOLDEN / f"{name}.arpa.gz")
    words = {word.encode() for word in theirs.words} if name == "words_3_pruned" else None
    assert_close(read(arpa(text, order, prune, words), tmp_path), theirs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("text", [TEXT, letters(30), b"A B C\nA B\nC\n", b"W\n", b"A B A\n" * 9])
@pytest.mark.parametrize("options", ["", "--prune 0 1", "--prune 1", "--vocabulary v.txt"])
def test_both_estimators_take_the_same_options(
    options: str,
    text: bytes,
    order: int,
    estimator: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # lmplz gives a pruned </s> the probability 1
    if text == b"W\n":
        options = ""
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_bytes(text)
    Path("v.txt").write_text("THE 10\nB 2\nMAN 7\nE 1\n| 1\n")
    command = f"lm ngram t.txt --order {order} --estimator {estimator} --output m.arpa {options}"
    assert main(command.split()) == 0
    prune = tuple(int(n) for n in options.split() if n.isdigit()) or (0,)
    words = {b"THE", b"B", b"MAN", b"E", b"|"} if "v.txt" in options else None
    assert_close(read(arpa(text, order, prune, words), tmp_path), read_arpa("m.arpa"))
    assert sorted(p.name for p in Path().iterdir()) == ["m.arpa", "read.arpa", "t.txt", "v.txt"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([(0,), (0, 1), (1, 1, 2)]),
    st.sampled_from([None, {b"a"}, {b"a", b"b", b"c"}]),
)
def test_probabilities_sum_to_one(
    tmp_path_factory: pytest.TempPathFactory,
    text: list[list[str]],
    order: int,
    prune: tuple[int, ...],
    words: set[bytes] | None,
) -> None:
    content = "\n".join(map(" ".join, text)).encode()
    model = read(arpa(content, order, prune[:order], words), tmp_path_factory.mktemp("arpa"))
    following = [[word] for word in model.words if word not in ("<s>", "</s>")]
    for context in itertools.product([*"abz"], repeat=min(order, 2)):
        scores = [model.score([*context, *word], eos=False)[-1] for word in following]
        scores.append(model.score(context)[-1])
        assert sum(10**x for x in scores) == pytest.approx(1, abs=1e-5)


def test_unknown_words_and_no_end(tmp_path: Path) -> None:
    model = read(arpa(TEXT, 3), tmp_path)
    whole = model.score("THE MAN".split())
    assert len(whole) == 3
    assert model.score("THE MAN".split(), eos=False) == whole[:2]
    assert model.score(["THE"], bos=False, eos=False) == [
        model.grams[0][(model.numbers["THE"],)][0]
    ]
    unknown = model.score(["THE", "ZEBRA"], eos=False)[1]
    assert unknown == pytest.approx(
        model.grams[1][(model.numbers["<s>"], model.numbers["THE"])][1]
        + model.grams[0][(model.numbers["THE"],)][1]
        + model.grams[0][(model.numbers["<unk>"],)][0]
    )


@pytest.mark.shared("golden")
def test_scores_are_those_of_kenlm(full_golden_dir: Path, tmp_path: Path) -> None:
    """The hypotheses of fairseq's label-free score, as kenlm scored them."""
    with safe_open(full_golden_dir / "w2vu_selection.safetensors", "np") as file:
        stored = json.loads(file.metadata()["json"])
    model = read(stored["arpa"].encode(), tmp_path)
    count = 0
    for case in stored["cases"].values():
        for batch in case["batches"]:
            for kept, log10 in zip(batch["kept"], batch["log10"], strict=True):
                phones = [stored["symbols"][i] for i in kept]
                assert sum(model.score(phones)) == pytest.approx(log10, abs=3e-6 * (len(kept) + 1))
                count += 1
    assert count > 20


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_command(
    kind: str, estimator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, target = tmp_path / "text.txt.gz", tmp_path / f"new/m{kind}"
    text.write_bytes(gzip.compress(b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n\r\n")))
    command = ["lm", "ngram", str(text), "--order", "4", "--output", str(target)]
    assert main([*command, "--estimator", estimator]) == 0
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    assert sniff(target) == ("kenlm" if kind == ".bin" else "arpa")
    if kind != ".bin":
        assert_close(read_arpa(target), read_arpa(GOLDEN / "words_4.arpa.gz"))
        assert [*arpa_words(target)] == [*dict.fromkeys(TEXT.decode().split())]
    assert main([*command, "--estimator", estimator]) == 2
    assert "exists: remove it" in capsys.readouterr().err


def test_vocabulary_of_a_dictionary(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("THE 300\nMAN 50\nNOWHERE 1\n")
    options = ["--vocabulary", str(tmp_path / "dict.txt"), "--estimator", "own"]
    target = tmp_path / "m.arpa"
    text = str(GOLDEN / "text.txt")
    assert main(["lm", "ngram", text, "--order", "2", "--output", str(target), *options]) == 0
    assert {*arpa_words(target)} == {"THE", "MAN"}


def test_one_repeated_sentence_has_the_fallback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_bytes(b"A B C\n" * 50 + b"\0\n   \n")
    command = ["lm", "ngram", str(tmp_path / "t.txt"), "--output", str(tmp_path / "m.arpa")]
    assert main([*command, "--order", "3", "--estimator", "own"]) == 0
    assert "note: the discounts of order 1, 2, 3 are 0.5, 1, 1.5" in capsys.readouterr().out
    model = read_arpa(tmp_path / "m.arpa")
    likely = model.score("A B C".split())
    assert min(likely) > -0.2
    assert model.score("C B A".split())[0] < -0.5


def test_a_sentence_of_a_million_words(tmp_path: Path) -> None:
    content = b"A B C D " * 50_000
    model = read(arpa(content, 3), tmp_path)
    assert len(model.grams[2]) == 6  # <s> A B, four inside, C D </s>


MISTAKES = {
    "empty": (b"", "there is no sentence in"),
    "blank": (b"\n \r\n\0\n", "there is no sentence in"),
    "mark": (b"A B\nA </s> B\n", "line 2, has the word </s>"),
    "unknown": (b"A B\n\n<unk>\n", "line 3, has the word <unk>"),
    "latin": (b"A\nB \xe9t\xe9\n", "line 2, is not UTF-8 text (byte 0xE9)"),
    "gzip": (gzip.compress(TEXT)[:-20], "is damaged"),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", MISTAKES)
def test_bad_texts(
    name: str, estimator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = MISTAKES[name]
    (tmp_path / "t.txt").write_bytes(content)
    target = tmp_path / "out/m.arpa"
    command = ["lm", "ngram", str(tmp_path / "t.txt"), "--output", str(target)]
    assert main([*command, "--estimator", estimator]) == 2
    assert message in capsys.readouterr().err
    assert [*target.parent.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--order 1 --output m.arpa", "--order is 1 but must be from 2 to 6, which KenLM"),
        ("--order 7 --output m.arpa", "--order is 7 but must be"),
        ("--output m.lm", "must end in .arpa, .arpa.gz, .bin"),
        ("--output m.arpa --prune 1 0", "--prune is 1 0 but must be"),
        ("--output m.arpa --prune -1", "--prune is -1 but must be at least 0"),
        ("--order 2 --output m.arpa --prune 0 0 1", "--prune is 0 0 1 but must be up to 2"),
        ("--output m.arpa --vocabulary empty.txt", "empty.txt has no word"),
        ("--output m.arpa --vocabulary nowhere.txt", "No such file"),
        ("--output m.arpa --estimator lmplz", "lmplz is not on the PATH"),
        ("--output m.bin", "build_binary is not on the PATH"),
        ("--output empty.txt/m.arpa", "--output needs the folder empty.txt, but empty.txt is a"),
    ],
)
def test_mistakes(
    options: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    Path("empty.txt").touch()
    text = str(GOLDEN / "text.txt")
    assert main(["lm", "ngram", *options.split(), "--", text]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["empty.txt"]


# Of build_binary and lmplz of KenLM 0.3.0
BAR = "----5---10---15---20---25---30---35---40---45---50---55---60---65---70---75---80---85---90"
READING = f"Reading a.arpa\n{BAR}---95--100\n{'*' * 100}\n"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            f"{READING}model.cc:100 in void lm::X(int) [with S = Y] threw FormatLoadException.\n"
            "This ngram implementation assumes at least a bigram model. Byte: 18\nERROR\n",
            "This ngram implementation assumes at least a bigram model. Byte: 18",
        ),
        (
            "=== 2/5 Calculating ===\ncounts.cc:49 in void lm::X() threw BadDiscountException "
            "because `s.n[j] == 0'.\nCould not calculate discounts.\nTry deduplicating.\n\n",
            "Could not calculate discounts. Try deduplicating.",
        ),
        ("Reading\nterminate called\n", "terminate called"),
        (f"{'*' * 100}\nERROR\n", ""),
        ("", ""),
    ],
)
def test_what_kenlm_complains_of(said: str, why: str) -> None:
    assert complaint(said) == why


if shutil.which("build_binary"):

    def test_build_binary_says_why(tmp_path: Path) -> None:
        why = '^build_binary failed: first .* "garbage" not'
        with pytest.raises(ConfigError, match=why), _target(tmp_path / "m.bin") as file:
            file.write(b"garbage\n")


def test_too_large_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 1 << 20 < available_memory() < 1 << 50
    monkeypatch.setattr("w2v2dist.lm.ngram.available_memory", lambda: 100_000)
    target = tmp_path / "m.arpa"
    text = str(GOLDEN / "text.txt")
    assert main(["lm", "ngram", text, "--output", str(target), "--estimator", "own"]) == 2
    assert "2,139 words of order 4 need about 0.0 GB" in capsys.readouterr().err
    assert not target.exists()


GOOD = arpa(b"A B\nB A\n", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no n-gram model"),
        (b"A B\n", "is no n-gram model"),
        (GOOD[:-7], "is cut short"),
        (GOOD[:60], "is cut short"),
        (GOOD.replace(b"ngram 1=5", b"ngram 1=6"), "has 5 1-grams but its header says 6"),
        (GOOD.replace(b"ngram 2=6", b"ngram 2=5"), "has 6 2-grams but its header says 5"),
        (GOOD.replace(b"ngram 2=6", b"ngram 3=6"), "line 3, is b'ngram 3=6'"),
        (GOOD.replace(b"\tA B", b"\tA C"), "'C' is not among its unigrams"),
        (GOOD.replace(b"\tA B", b"\tA B C D"), "no 2-gram"),
        (GOOD.replace(b"\tB A", b"\tA B"), "A B is there twice"),
        (GOOD.replace(b"\\2-grams", b"\\3-grams"), "\\3-grams: follows 1-grams of 2 orders"),
        (GOOD.replace(b"\n-", b"\n-x", 1), "is no number"),
        (GOOD.replace(b"\tA B", b"\tA \xe9"), "is not UTF-8"),
        (GOOD.replace(b"<s>", b"<t>"), "has no <s>"),
    ],
)
def test_bad_arpa_files(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(content, tmp_path)
    assert "read.arpa" in str(error.value)


def test_other_writers_files(tmp_path: Path) -> None:
    """Blanks for tabs, no <unk>, comments, no back-off where none is needed (SRILM)."""
    content = b"# by hand\n\n\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-99 <s> -0.5\n-1 </s>\n"
    content += b"-0.5 A -0.25\r\n\n\\2-grams:\n-0.125 <s> A\n\n\\end\\\n"
    model = read(content, tmp_path)
    assert model.score(["A"]) == [-0.125, -1.25]
    assert model.score(["A", "B"])[1] == -100.25
    assert [*arpa_words(tmp_path / "read.arpa")] == ["A"]


def test_sniff(tmp_path: Path) -> None:
    path = tmp_path / "lm"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0\0\0")
    assert sniff(path) == "kenlm"
    path.write_bytes(gzip.compress(GOOD))
    assert sniff(path) == "arpa"
    for content in (b"", b"mmap lm", b"PK\x03\x04" * 9, b"A B\n\\data\\\n", b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no n-gram model"):
            sniff(path)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_mutated_arpa_files(examples: int, tmp_path: Path) -> None:
    def read_any(content: bytes) -> Any:
        model = read(content, tmp_path)
        return model.score(["A", "B", "C"])

    fuzz(examples, [GOOD, gzip.compress(GOOD)], read_any, (ValueError,))

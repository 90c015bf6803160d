"""`w2v2dist unsupervised text`: words, pronunciations, pruning, `<SIL>`, and what is left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from w2v2dist.cli import main, parse
from w2v2dist.config import ConfigError
from w2v2dist.data.timit import fold
from w2v2dist.lm.arpa import read_arpa
from w2v2dist.unsupervised import text as command
from w2v2dist.unsupervised.phone_text import PhoneText
from w2v2dist.unsupervised.pronunciation import phonemized, read_pronunciations
from w2v2dist.unsupervised.text_language import OnlyLanguage
from w2v2dist.unsupervised.text_words import Reading, prune, worth_speaking

LEXICON = "the\tð ə\ncat\tk æ t\ndog\td ɔ g\nsat\ts æ t\nnaïve\tn a iː v\ndon't\td oʊ n t\n"
SENTENCES = "the cat sat\nthe dog, sat!\nthe naïve cat\nthe zebra sat\n"


def made(folder: Path, text: str, *options: str, lexicon: str | None = LEXICON) -> PhoneText:
    """What the command makes of a text, with every word and phone worth it."""
    (folder / "text.txt").write_text(text, "utf-8")
    words = []
    if lexicon is not None:
        (folder / "lexicon.txt").write_text(lexicon, "utf-8")
        words = ["--lexicon", f"{folder}/lexicon.txt"]
    least = ["--min-count", "1", "--min-phones", "1", "--workers", "1"]
    given = [f"{folder}/text.txt", "--output", f"{folder}/out", *words, *least, *options]
    module, args = parse(["unsupervised", "text", *given])
    assert module.run(args) == 0
    return PhoneText(folder / "out")


def spelled(text: PhoneText) -> list[str]:
    return [" ".join(text.symbols[i] for i in text.line(n)) for n in range(len(text))]


def test_sentences_become_phones(tmp_path: Path) -> None:
    text = made(tmp_path, SENTENCES, "--silence", "0")
    assert spelled(text) == [
        "<SIL> ð ə k æ t s æ t <SIL>",
        "<SIL> ð ə d ɔ g s æ t <SIL>",
        "<SIL> ð ə n a iː v k æ t <SIL>",
    ]
    assert text.meta["left_out"] == {"a word outside the lexicon": 1}
    # counted over the list of words, not over the text: t is in cat and sat
    assert text.symbols[4:6] == ["t", "æ"]
    assert (tmp_path / "out/dict.phn.txt").read_text("utf-8").splitlines()[0] == "t 2"
    words = (tmp_path / "out/dict.words.txt").read_text("utf-8").splitlines()
    assert words[0] == "the 4"
    assert "zebra 1" not in words
    assert "the\tð ə" in (tmp_path / "out/lexicon.txt").read_text("utf-8").splitlines()


def test_language_models_are_with_silence_and_without(tmp_path: Path) -> None:
    text = made(tmp_path, SENTENCES, "--silence", "1", "--order", "3", "2")
    with_silence = read_arpa(text.lm_path(True, 3))
    assert "<SIL>" in with_silence.words
    assert with_silence.order == 3
    assert "<SIL>" not in read_arpa(text.lm_path(False, 3)).words
    assert text.lm_path(False, 2).is_file()
    sure = with_silence.score(["<SIL>", "ð", "ə"])[0]
    assert sure > with_silence.score(["k", "ð", "ə"])[0], "every line begins with it"


PLAIN = "p b t d k g m n ŋ f v s z ʃ ʒ h l ɹ j w i e ɛ a ɑ ɔ o ʊ u ə".split()
INVENTORIES = {
    "timit": [*fold(61), "noise", "breath", "laugh"],
    "ipa": [f"{p}{d}" for p in PLAIN for d in ("", "ʰ", "ː", "̃ː", "͡ʃʲʷ")],
    "tones": [f"{p}{tone}" for p in ("iang", "uang", "iong") for tone in range(1, 6)] + PLAIN,
    "placed": [f"{phone.upper()}1_{place}" for phone in fold(61) for place in "BIES"],
    "many": [f"{p}{i}" for p in PLAIN[:20] for i in range(10)],
}


def test_what_leaves_nothing_says_which_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sentence is left: .* these words: 'cats', 'dogs'"):
        made(tmp_path, "the cats\nthe dogs\nthe cats\n")
    with pytest.raises(ConfigError, match=r"none of the 2 words can be spoken: .* five digits"):
        made(tmp_path, "123456 98765\n")
    with pytest.raises(ConfigError, match=r"the lexicon '.*' is a folder"):
        read_pronunciations(tmp_path)


@pytest.mark.parametrize("name", INVENTORIES)
def test_any_languages_phones_are_taken(tmp_path: Path, name: str) -> None:
    phones = INVENTORIES[name]
    text = "".join(f"{' '.join(phones[i:] + phones[:i])}\n" for i in range(20))
    assert len(made(tmp_path, text, "--phones", lexicon=None).symbols) == 4 + len(phones) + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "it was the best of times it was the worst of times\nthe cat sat on houses and gardens",
            r"4 of 13 symbols are longer than 4 letters: 'times', 'worst', 'houses', 'gardens'\)",
        ),
        (" ".join(f"w{i}" for i in range(401)), "401 different symbols where 400 are more than"),
        (
            "今日は良い天気です ねえそうですね 明日も晴れるでしょう そうかもしれない",
            "4 of 4 symbols are longer",
        ),
    ],
)
def test_words_are_no_phones(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"--phones has words where phones should be .*{message}"
    ):
        made(tmp_path, text, "--phones", lexicon=None)
    words = sorted({*text.split()})
    lexicon = "".join(f"{word}\t{word} {word}\n" for word in words)
    with pytest.raises(ConfigError, match=r"the lexicon .* has words where phones should be"):
        made(tmp_path, text, lexicon=lexicon)
    assert not (tmp_path / "out").exists()


def test_sentences_in_another_language_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    german = "der hund saß auf der matte\nIl fait beau aujourd'hui à Paris\n"
    lexicon = LEXICON + "".join(f"{w}\ts\n" for w in german.split())
    text = "the cat sat\n" + german
    out = made(tmp_path, text, "--only-language", "en", lexicon=lexicon)
    assert len(out) == 1
    assert out.meta["left_out"] == {"another language": 2}
    assert "hund" not in (tmp_path / "out/dict.words.txt").read_text("utf-8")
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 sentences left out (66.7%): 2 in another language (--only-language)" in said
    (tmp_path / "all").mkdir()
    assert len(made(tmp_path / "all", text, lexicon=lexicon)) == 3
    given = ["unsupervised", "text", f"{tmp_path}/text.txt", "--output", f"{tmp_path}/other"]
    for code, message in (
        ("it", "the text has no word"),
        ("en-us", "which fastText does not know: take one of en"),
        ("xx", "take one of af als am"),
    ):
        more = ["--lexicon", f"{tmp_path}/lexicon.txt", "--only-language", code]
        assert main([*given, *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    for option in (["--only-language", "en"], ["--no-stress"], ["--case", "upper"]):
        assert main([*given, "--phones", *option]) == 2
        assert f"{option[0]} is of words, but --phones has none" in capsys.readouterr().err
    assert main([*given, "--phones", "--only-language", "en"]) == 2
    assert "--phones has none" in capsys.readouterr().err


def test_a_sentence_that_may_be_in_the_language_stays() -> None:
    only = OnlyLanguage("de")
    assert only("Der Hund bellt laut im Garten")
    assert not only("The dog barks in the garden")
    ranked = only._languages("hello", -1.0)
    assert ranked[0]["lang"] == "en"
    assert ranked[0]["score"] < 0.4, "of what is sure of nothing the likeliest stays"
    assert OnlyLanguage("en")("hello")
    assert not OnlyLanguage(ranked[1]["lang"])("hello")


def test_silence_is_drawn_by_line_whatever_the_processes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(command, "CHUNK", 7)
    text = "the cat sat the dog sat the cat\n" * 100
    folders = {}
    for name, more in {
        "one": [],
        "three": ["--workers", "3"],
        "seed": ["--seed", "1"],
    }.items():
        (tmp_path / name).mkdir()
        folders[name] = made(tmp_path / name, text, *more)
    one = spelled(folders["one"])
    assert one == spelled(folders["three"])
    assert folders["one"].fingerprint == folders["three"].fingerprint
    assert one != spelled(folders["seed"])
    rests = sum(line.split().count("<SIL>") - 2 for line in one)
    assert abs(rests / (7 * 100) - 0.25) < 0.06
    assert len({*one}) > 30, "each line has its own draws"
    # A line before others changes nothing of theirs but their number
    longer = spelled(made(tmp_path / "one", text + "the dog sat\n", "--output", f"{tmp_path}/o"))
    assert longer[:100] == one


def test_of_a_text_of_phones(tmp_path: Path) -> None:
    text = made(tmp_path, "k æ t | s æ t\nd ɔ\n", "--phones", "--silence", "1", lexicon=None)
    assert spelled(text) == ["<SIL> k æ t <SIL> s æ t <SIL>", "<SIL> d ɔ <SIL>"]
    (tmp_path / "timit").mkdir()
    timit = made(tmp_path / "timit", "sil k æ sil\n", "--phones", "--no-silence", lexicon=None)
    assert spelled(timit) == ["sil k æ sil"]
    assert timit.symbols[-1] == "<SIL>"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("The cat, sat.", "The cat sat"),
        ("don’t ‘quote’ it", "don't quote it"),
        ("well-known - dash -ish", "well-known dash ish"),
        ("50 % of naïve", "50 of naïve"),
        ("e\u0301te\u0301", "été"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("' - ''", "no word"),
        ("a --- b", "---"),
    ],
)
def test_which_characters_stay(line: str, words: str) -> None:
    found = Reading().words(line)
    assert (found if isinstance(found, str) else " ".join(found)) == words


def test_which_words_are_worth_it() -> None:
    counts = {"a": 5, "b": 9, "c": 1, "1234": 5, "12345": 5, "x123456": 7}
    assert worth_speaking(counts, 2) == ["b", "1234", "a"]


def test_rare_phones_take_their_words_along() -> None:
    words = ["cat", "tack", "act", "dog", "zebra"]
    lexicon = {"cat": ("k", "t"), "tack": ("t", "k"), "act": ("k", "t", "x"), "dog": ("d",)}
    spoken = prune(words, lexicon, 2)
    assert spoken.phones == {"cat": ("k", "t"), "tack": ("t", "k")}
    assert spoken.counts == {"k": 3, "t": 3}
    assert spoken.pruned == {"x": 1, "d": 1}
    assert spoken.reasons == {
        "act": "a word with a rare phone",
        "dog": "a word with a rare phone",
        "zebra": "a word outside the lexicon",
    }


def test_lexica_as_people_have_them(tmp_path: Path) -> None:
    path = tmp_path / "cmudict.gz"
    content = ";;; a comment\nCAT  K AE1 T\nCAT(1)  K AH0 T\n\nDOG\tD AO1 G\nDOG\tD AO1 G\n"
    path.write_bytes(gzip.compress(content.encode()))
    found = read_pronunciations(path, "lower", stress=False)
    assert found.phones == {"cat": ("K", "AE", "T"), "dog": ("D", "AO", "G")}
    assert found.notes == ["1 further pronunciations of words are not used: the first one is"], (
        "identical lines are one"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cat", "line 2: 'cat' has no phones"),
        ("cat\t", "line 2: 'cat' has no phones"),
        ("\tk æ t", "line 2: the word is ''"),
        ("two words\tk æ t", "line 2: the word is 'two words'"),
        ("cat\tk <SIL> t", "line 2: 'cat' has the phone '<SIL>'"),
        ("cat\tk \x00 t", "line 2: 'cat' has the phone"),
        ("cat\tk <pad>", "mark of ours"),
    ],
)
def test_garbled_lexica(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(tmp_path, SENTENCES, lexicon=f"the\tð ə\n{line}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("кот сидел\nпёс\n", (), "written in Latin letters and the text in Cyrillic ones"),
        ("THE CAT\nTHE DOG\n", (), "in lower case 4: add --case lower"),
        ("uno dos\ntres\n", (), "has 0 of the text's 3 words: it is of another language"),
        ("", (), "the text has no word"),
        ("... !!!\n---\n", (), "1 with no word, 1 with ---"),
        ("the cat\n", ("--min-phones", "5"), r"lower it \(--min-phones 1\)"),
        ("the cat\n", ("--min-count", "2"), "there --min-count 2 times"),
        ("the x\nthe y\nthe the the\n the z", ("--silence", "1.5"), "--silence is 1.5"),
        ("the cat\n", ("--min-phones", "0"), "--min-phones is 0"),
        ("the cat\n", ("--order", "9"), "--order is 9"),
        ("the x\nthe y\nthe z\n", (), r"3 of 3 sentences left out \(100.0%\): 3 with a word outs"),
        ("the cat\n", ("--workers", "-1"), "--workers is -1"),
        ("the cat\n", ("--silence", "nan"), "--silence is nan"),
    ],
)
def test_texts_that_cannot_be(tmp_path: Path, text: str, options: tuple[str, ...], said) -> None:
    with pytest.raises(ValueError, match=said):
        made(tmp_path, text, *options)
    assert not (tmp_path / "out/meta.json").exists()


def test_phones_that_are_marks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the text of --phones has <SIL> among its phones, which"):
        made(tmp_path, "a <SIL> b\n", "--phones", lexicon=None)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"the cat\nthe \xff cat\n")
    (tmp_path / "l.txt").write_text(LEXICON, "utf-8")
    given = [f"{tmp_path}/t.txt", "--lexicon", f"{tmp_path}/l.txt", "--output", f"{tmp_path}/out"]
    module, args = parse(["unsupervised", "text", *given, "--min-count", "1", "--min-phones", "1"])
    with pytest.raises(ValueError, match="line 2, is not UTF-8 text"):
        module.run(args)
    (tmp_path / "t.txt").write_bytes(
        b"\xef\xbb\xbfthe cat\x00\r\n" + b"the " * 400_000 + b"\ndog\n"
    )
    assert module.run(args) == 0
    assert len(PhoneText(tmp_path / "out")) == 2, "a line of a megabyte is no sentence"


def test_a_lexicon_that_is_not_there(tmp_path: Path, capsys) -> None:
    (tmp_path / "t.txt").write_text("the cat\n")
    given = ["unsupervised", "text", f"{tmp_path}/t.txt", "--output", f"{tmp_path}/out"]
    assert main([*given, "--lexicon", f"{tmp_path}/none.txt"]) == 2
    assert "does not exist: give a file with `word<TAB>phone" in capsys.readouterr().err
    assert main(["unsupervised", "text", "-", *given[3:], "--lexicon", f"{tmp_path}/t.txt"]) == 2
    assert "cannot be read twice" in capsys.readouterr().err


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    text = made(tmp_path, SENTENCES)
    before = text.lm_path(False).read_bytes()
    text.lm_path(False).unlink()
    stamp = (tmp_path / "out/ids.npy").stat().st_mtime_ns
    made(tmp_path, SENTENCES)
    assert text.lm_path(False).read_bytes() == before
    assert (tmp_path / "out/ids.npy").stat().st_mtime_ns == stamp, "only what was missing is made"
    message = r"made otherwise \(silence is 0.25 there and 0.5 now\): remove it"
    with pytest.raises(ValueError, match=message):
        made(tmp_path, SENTENCES, "--silence", "0.5")
    with pytest.raises(ValueError, match="made otherwise"):
        made(tmp_path, SENTENCES + "the cat\n")


def test_nothing_is_written_over_and_nothing_half_written_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/lexicon.txt").write_text("mine")
    with pytest.raises(ValueError, match="out exists: remove it or choose another output"):
        made(tmp_path, SENTENCES)
    assert (tmp_path / "out/lexicon.txt").read_text() == "mine"
    (tmp_path / "out/lexicon.txt").unlink()
    with pytest.raises(ValueError, match="no sentence is left"):
        made(tmp_path, "the zebra\n")
    assert [*(tmp_path / "out").iterdir()] == []
    assert {p.name for p in tmp_path.iterdir()} == {"out", "text.txt", "lexicon.txt"}
    (tmp_path / "out").rmdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert len(made(tmp_path, SENTENCES)) == 3
    assert (tmp_path / "disk/meta.json").is_file()


def test_long_texts_are_thinned_for_the_ngram(tmp_path: Path, monkeypatch) -> None:
    from w2v2dist.unsupervised import phone_lm

    text = made(tmp_path, SENTENCES * 10)
    monkeypatch.setattr(phone_lm, "ENOUGH", text.meta["num_ids"] // 3)
    for with_silence in (True, False):
        text.lm_path(with_silence).unlink()
    notes = phone_lm.write_phone_lms(text)
    assert notes == [f"the n-grams are of every 4th line: {phone_lm.ENOUGH:,} phones are enough"]


def test_espeak_speaks(tmp_path: Path) -> None:
    text = made(tmp_path, "the cat sat\n", "--language", "en-us", lexicon=None)
    assert spelled(text)[0].replace("<SIL> ", "") == "ð ə k æ t s æ t <SIL>"
    german = phonemized(["Straße", "привет", "1999", "Computer", "ja"], "de")
    assert german.phones.keys() == {"Straße", "1999", "Computer", "ja"}
    assert not any({*"(|ˈˌ"} & {*"".join(phones)} for phones in german.phones.values())
    assert len(german.notes) == 1


@pytest.mark.parametrize(
    ("words", "language", "said"),
    [
        (["привет", "кот", "cat"], "en-us", "reads 2 of 3 words in another language or letter"),
        (["hello", "cat"], "ru", "the text is in another alphabet or language"),
        (["cat"], "xx", "which espeak-ng does not know"),
        (["cat"], "en", "take one of .*en-us"),
    ],
)
def test_espeak_of_another_language(words: list[str], language: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        phonemized(words, language)


def test_ids_are_small(tmp_path: Path) -> None:
    made(tmp_path, SENTENCES)
    assert np.load(tmp_path / "out/ids.npy").dtype == np.uint8
    assert json.loads((tmp_path / "out/meta.json").read_text("utf-8"))["num_lines"] == 3

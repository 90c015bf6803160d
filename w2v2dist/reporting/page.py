"""HTML that no text can break out of, and a page that needs nothing but itself."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

ASSETS = resources.files("w2v2dist.reporting") / "page"
EMPTY = ("meta", "br", "link", "input", "img")  # elements without an end


class Html(str):
    """Markup. Any other text is escaped where it is put into some."""

    __slots__ = ()


def tag(element: str, /, *content: Any, **attributes: Any) -> Html:
    """An element: `class_` is class, `data_x` data-x; an attribute that is True stands alone, one
    that is None or False is left out, and so is content that is None."""
    parts = [f"<{element}"]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {key}")
        elif value is not None and value is not False:
            parts.append(f' {key}="{html.escape(_clean(value))}"')
    parts.append(">")
    if element in EMPTY:
        return Html("".join(parts))
    return Html(f"{''.join(parts)}{join(content)}</{element}>")


def join(content: Iterable[Any]) -> Html:
    """Markup and texts, one after another."""
    return Html(
        "".join(
            item if isinstance(item, Html) else html.escape(_clean(item))
            for item in content
            if item is not None
        )
    )


def _clean(value: Any) -> str:
    """Text without the control characters that HTML has no place for."""
    return "".join(c for c in str(value) if c >= " " or c in "\n\t")


def cut(text: str, most: int) -> str:
    """The first `most` characters of a text, with "…" where there are more."""
    return text if len(text) <= most else text[:most] + "…"


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], class_: str | None = None) -> Html:
    """A table that scrolls where it is wider than the screen; cells are texts or markup."""
    titles = tag("tr", *(tag("th", name) for name in head))
    lines = (
        tag("tr", *(c if _is_cell(c) else tag("td", c, dir="auto") for c in row)) for row in rows
    )
    return tag(
        "div",
        tag("table", tag("thead", titles), tag("tbody", *lines), class_=class_),
        class_="scroll",
        tabindex="0",
    )


def _is_cell(value: Any) -> bool:
    return isinstance(value, Html) and value.startswith("<td")


def cards(numbers: dict[str, str]) -> Html:
    """Label to number, a card each."""
    return tag(
        "div",
        *(
            tag("div", tag("b", n), tag("span", label), class_="card")
            for label, n in numbers.items()
        ),
        class_="cards",
    )


def fold(title: Any, *content: Any, opened: bool = False) -> Html:
    """What a click on its title shows."""
    return tag("details", tag("summary", title), *content, open=opened)


def embedded(value: Any, name: str) -> Html:
    """Data for the page's script. No text in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')


def document(title: str, body: Html, data: Any) -> str:
    """The page: styles, the library of the curves, `body`, `data` and the script that draws them.
    Its policy lets no other script run and fetches nothing."""
    library, script, *styles = (
        (ASSETS / name).read_text(encoding="utf-8")
        for name in ("uPlot.iife.min.js", "page.js", "uPlot.min.css", "page.css")
    )
    licence = (ASSETS / "uPlot.LICENSE").read_text(encoding="utf-8")
    scripts = [f"/* uPlot\n{licence}*/\n{library}", script]
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; media-src data:; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = [
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        Html('<link rel="icon" href="data:,">'),
        tag("title", title),
        *(Html(f"<style>{text}</style>") for text in styles),
    ]
    end = [embedded(data, "data"), *(Html(f"<script>{text}</script>") for text in scripts)]
    page = join([tag("head", *head), tag("body", body, *end)])
    return f'<!doctype html>\n<html lang="en">{page}</html>\n'


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

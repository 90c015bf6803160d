"""Reports in a real browser: nothing fails, no panel is empty, curves zoom, texts run no script."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.chromium import chromium
from tests.report_runs import NAME, finetuning, pretraining
from w2v2dist.reporting.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
WIDE, NARROW = (1400, 900), (390, 844)
# Of a noisy machine; the report says what it is on a quiet one
OPENED_S = 6.0
LARGE_STEPS = 600_000
# The canvas of every panel: how many of its columns have some colour. Curves are as wide as a
# panel, marks a few pixels, and axes and lines gray
COLUMNS = """() => [...document.querySelectorAll("[data-panel]")].map((panel) => {
  const canvas = panel.querySelector("canvas"), {width, height} = canvas, found = new Set();
  const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
  for (let i = 0; i < data.length; i += 4) {
    const r = data[i], g = data[i + 1], b = data[i + 2];
    if (data[i + 3] > 60 && Math.max(r, g, b) - Math.min(r, g, b) > 40) found.add((i / 4) % width);
  }
  return {title: panel.querySelector("figcaption").textContent, coloured: found.size / width};
})"""
DRAWN = 0.4  # of the columns
RANGES = "() => report.plots.map((plot) => [plot().scales.x.min, plot().scales.x.max])"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, made_speech: Path) -> dict[str, Path]:
    """A pre-training; two fine-tunings with evaluations and hostile names; all together."""
    folder = tmp_path_factory.mktemp("reports")
    speech = next(p for p in sorted(made_speech.rglob("*")) if p.is_dir() and any(p.glob("*.flac")))
    pre = pretraining(folder / "pre", 6_000, 10, restart_every=1_700)
    other = pretraining(folder / "other", 6_000, 10, seed=2)
    one = finetuning(folder / NAME, [1.0, 0.8, 0.5, 0.3, 0.25, 0.2], speech)
    two = finetuning(folder / "scratch", [1.0, 0.9, 0.8, 0.8, 0.7, 0.7])
    groups = {"pretraining": [pre], "finetuning": [one], "compared": [pre, other, one, two]}
    return {
        name: write_report(runs, folder / f"{name}.html", {"note": "<b>x</b>"})
        for name, runs in groups.items()
    }


def opened(browser: Browser, report: Path, size: tuple[int, int], scheme: Any = "light") -> Page:
    """The page, drawn; an error of any script fails the test that closes it."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.problems = problems = []  # type: ignore[attr-defined]
    page.on("console", lambda said: said.type == "error" and problems.append(said.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("http", "ws")) and problems.append(r.url))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    return page


def closed(page: Page) -> None:
    problems = page.problems  # type: ignore[attr-defined]
    page.close()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["pretraining", "finetuning", "compared"])
def test_every_panel_is_drawn_and_fits(
    browser: Browser, reports: dict[str, Path], name: str, size: tuple[int, int], scheme: str
) -> None:
    page = opened(browser, reports[name], size, scheme)
    panels = page.evaluate(COLUMNS)
    assert len(panels) >= {"pretraining": 12, "finetuning": 7, "compared": 19}[name]
    assert [panel["title"] for panel in panels if panel["coloured"] < DRAWN] == []
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate("window.hacked") is None
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, ground[4:-1].split(","))) > 380
    assert light == (scheme == "light")
    closed(page)


def test_the_check_of_pixels_finds_an_empty_panel(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = opened(browser, reports["pretraining"], WIDE)
    assert page.evaluate(COLUMNS)[0]["coloured"] > DRAWN
    page.evaluate(
        """() => { const plot = report.plots[0]();  // marks and the line of chance stay
        plot.setData(plot.data.map((column, i) => (i ? column.map(() => null) : column))); }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate(COLUMNS)[0]["coloured"] < DRAWN
    closed(page)


def test_drag_zooms_all_panels_and_a_double_click_resets(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = opened(browser, reports["pretraining"], WIDE)
    before = page.evaluate(RANGES)
    over = page.locator(".u-over").first
    box = over.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.25 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], y, steps=5)
    page.mouse.up()
    zoomed = page.evaluate(RANGES)
    for low, high in zoomed:
        assert low == pytest.approx(1_500, abs=150)
        assert high == pytest.approx(3_000, abs=150)
    page.mouse.dblclick(box["x"] + 0.5 * box["width"], y)
    assert page.evaluate(RANGES) == before
    closed(page)


def test_the_legends_of_all_panels_say_the_values_under_the_cursor(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = opened(browser, reports["pretraining"], WIDE)
    legends = page.locator(".legend")
    assert "step" not in legends.first.inner_text()
    box = page.locator(".u-over").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    texts = legends.all_inner_texts()
    assert all(text.startswith(("step 2,9", "step 3,0")) for text in texts), texts
    assert "on node" in next(text for text in texts if "slowest" in text)
    loss = float(texts[0].split("train ")[1].split(",")[0])
    assert 1.5 < loss < 2.5  # 6.65 - 4.7 (1 - exp(-4)), with noise
    closed(page)


def test_a_name_in_the_legend_hides_its_curve_and_log_changes_the_scale(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = opened(browser, reports["compared"], WIDE)
    page.locator(".legend button").first.click()
    assert page.evaluate("report.plots[0]().series[1].show") is False
    page.locator(".panel .log").first.click()
    assert page.evaluate("report.plots[0]().scales.y.distr") == 3
    closed(page)


def test_recordings_play(browser: Browser, reports: dict[str, Path]) -> None:
    page = opened(browser, reports["finetuning"], NARROW)
    assert page.locator("audio[data-clip]").count() >= 2
    seconds = page.evaluate(
        """async () => { const audio = document.querySelector("audio[data-clip]");
        audio.preload = "metadata"; audio.load();
        await new Promise((done, fail) => { audio.onloadedmetadata = done; audio.onerror = fail; });
        return audio.duration; }"""
    )
    assert 0.3 < seconds < 30
    closed(page)


def test_texts_are_shown_as_they_are(browser: Browser, reports: dict[str, Path]) -> None:
    page = opened(browser, reports["finetuning"], WIDE)
    assert page.locator("h1").inner_text() == NAME
    assert "<b>x</b>" in page.locator("header").inner_text()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert "onerror=" in page.locator(".read").first.inner_text()
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.hacked") is None
    closed(page)


def test_a_script_in_the_page_that_is_not_ours_does_not_run(
    browser: Browser, reports: dict[str, Path], tmp_path: Path
) -> None:
    text = reports["pretraining"].read_text(encoding="utf-8")
    changed = tmp_path / "changed.html"
    changed.write_text(text.replace("<main>", "<main><script>window.hacked = 1</script>"))
    page = browser.new_page()
    page.goto(changed.as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert page.evaluate("window.hacked") is None
    page.close()


def test_the_colours_follow_a_change_of_the_scheme(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = opened(browser, reports["pretraining"], WIDE)
    stroke = "report.plots[0]().series[1].stroke(report.plots[0](), 1)"
    light = page.evaluate(stroke)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    assert page.evaluate(stroke) != light
    assert [p for p in page.evaluate(COLUMNS) if p["coloured"] < DRAWN] == []
    closed(page)


@pytest.mark.timeout(900)
def test_a_run_of_600_000_steps_opens_at_once(browser: Browser, tmp_path: Path) -> None:
    run = pretraining(tmp_path / "large", LARGE_STEPS, 1, restart_every=57_000)
    report = write_report([run], tmp_path / "report.html")
    assert report.stat().st_size < 5_000_000
    begin = time.monotonic()
    page = opened(browser, report, WIDE)
    seconds = time.monotonic() - begin
    print(f"\n{report.stat().st_size / 1e6:.2f} MB, opened in {seconds:.2f} s")
    assert [p for p in page.evaluate(COLUMNS) if p["coloured"] < DRAWN] == []
    assert seconds < OPENED_S
    closed(page)

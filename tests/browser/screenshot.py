"""A picture of a report, for docs/.

python -m tests.browser.screenshot REPORT.html docs/report.png --width 1400 --height 1500
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.browser.chromium import chromium


def screenshot(report: Path, output: Path, args: argparse.Namespace) -> None:
    """Draw the report on a screen of that size and write what stands there from `top` on."""
    with chromium() as browser:
        page = browser.new_page(
            viewport={"width": args.width, "height": args.height},
            color_scheme="dark" if args.dark else "light",
        )
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]")
        if args.top:
            page.locator(args.top).first.scroll_into_view_if_needed()
            page.evaluate("s => document.querySelector(s).scrollIntoView()", args.top)
        page.screenshot(path=output, full_page=args.full)


def main() -> None:
    """Read the arguments, write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("report", type=Path)
    add("output", type=Path)
    add("--width", type=int, default=1400, help="pixels")
    add("--height", type=int, default=1000, help="pixels")
    add("--top", metavar="SELECTOR", help="what the picture begins with, such as .evaluation")
    add("--full", action="store_true", help="the whole page, however long")
    add("--dark", action="store_true")
    args = parser.parse_args()
    screenshot(args.report, args.output, args)


if __name__ == "__main__":
    main()

"""The site's formulas in a real browser: on a phone each line fits, on a desktop they stand as written."""

import html
import re
from pathlib import Path

import pytest
from chromium import Browser, program

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium is installed")
SITE = Path(__file__).resolve().parent.parent / "docs" / "site"
DOCUMENT = SITE.parent / "lstm_backward.md"
FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="{site}/katex/katex.min.css"><link rel="stylesheet" href="{site}/style.css">
<script src="{site}/katex/katex.min.js"></script><script src="{site}/maths.js"></script>
<style>
* {{ box-sizing: border-box }}
.md-typeset div.arithmatex {{ overflow: auto }}
.md-typeset div.arithmatex > * {{ width: min-content; padding: 0 12px; margin-inline: auto !important }}
</style>
<body class="md-typeset" style="margin: 0; font-size: 16px">{formulas}</body></html>"""
"""As the theme has it: its rule for what stands in a formula's place included."""


@pytest.fixture(scope="module")
def formulas():
    return FORMULA.findall(DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("width", "rows"), [(360, True), (760, False)], ids=["phone", "desktop"])
def test_every_formula_of_the_derivation_is_set_and_fits(formulas, tmp_path, width, rows):
    path = tmp_path / "maths.html"
    divs = [f'<div class="arithmatex">\\[{html.escape(formula)}\\]</div>' for formula in formulas]
    path.write_text(PAGE.format(site=SITE.as_uri(), formulas="\n".join(divs)), encoding="utf-8")
    with Browser() as browser:
        browser.open(path, width, 740)
        browser.run(
            "numberOf = node => node.matches('.maths-row') ? node.lastChild.data ?? '' : node.innerText"
        )
        assert browser.complaints == []
        assert browser.run("document.querySelectorAll('.katex-error').length") == 0
        assert browser.run("document.documentElement.scrollWidth") <= width
        wide = (
            "[...document.querySelectorAll('.arithmatex')].filter(x => x.scrollWidth > x.clientWidth).length"
        )
        assert browser.run(wide) == 0
        # As the document numbers them: KaTeX numbers rows without a tag by itself, but for those of align*.
        shown = browser.run(
            "[...document.querySelectorAll('.tag, .eqn-num, .maths-row')].map(numberOf).join('')"
        )
        assert re.findall(r"\((\d+)\)", shown) == re.findall(r"\\tag\{(\d+)\}", "".join(formulas))
        assert browser.run("document.querySelectorAll('.eqn-num').length") == 0
        assert (browser.run("document.querySelectorAll('.maths-row').length") > len(formulas)) == rows
        wider = """[...document.querySelectorAll(".formula .base, .shape .base")].filter(
            base => base.getBoundingClientRect().right > innerWidth - 12).map(base => base.textContent)"""
        assert browser.run(wider) == []
        lines = "[...document.querySelectorAll('.formula')].map(line => line.clientWidth)"
        assert all(room > 250 for room in browser.run(lines))
        if rows:  # turned on its side, or made wider: as written
            browser(
                "Emulation.setDeviceMetricsOverride",
                width=1280,
                height=740,
                deviceScaleFactor=1,
                mobile=False,
            )
            browser.wait_for("document.querySelectorAll('.maths-row').length === 0")

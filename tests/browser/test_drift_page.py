"""The drift page in a real browser: whole, readable, narrow, and offline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import drift_project as made
import numpy as np
import pytest

from headrace.cli.drift_page import page as drift_page
from headrace.drift.compare import compare
from headrace.drift.profile import DAY_MS, make_profile
from headrace.drift.sketch import PeriodSketch
from headrace.training.split import Period
from headrace.training.watch import DriftReport, drift_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROWS = 6_000
WIDTHS = (360, 768, 1280)

#: Contrast of each text with what lies behind it, by the formula of WCAG 2.
_CONTRASTS = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('main *')) {
    const own = [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim());
    if (!own || node.closest('style')) continue;
    const style = getComputedStyle(node);
    const ink = light(parse(node.closest('svg') ? style.fill : style.color));
    const ground = light(behind(node));
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    found.push([ratio, node.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@dataclass
class Seen:
    """A page, what it wrote to the console, and what it asked for."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    """Return a page with findings of several causes."""
    folder = made.make_project(tmp_path_factory.mktemp("drift") / "shop")
    made.register(folder)
    vector = made.ordinary(ROWS, 3)
    vector[:, 0] *= 100
    vector[::4, 1] = np.nan
    made.append(folder, vector, made.times(ROWS, 14), made.scores(ROWS, 4))
    report = drift_report(folder, "shop", made.START_MS, made.START_MS + 14 * DAY_MS)
    path = folder / "drift.html"
    path.write_text(drift_page(report), encoding="utf-8")
    return path


@pytest.fixture(params=["light", "dark"])
def seen(request, chromium, report_file):
    """Return the page in a fresh window, light and dark."""
    context = chromium.new_context(color_scheme=request.param)
    page = context.new_page()
    found = Seen(page)
    page.on("console", lambda message: found.messages.append(message.text))
    page.on("pageerror", lambda error: found.messages.append(str(error)))
    page.on("request", lambda asked: found.requests.append(asked.url))
    page.goto(report_file.as_uri())
    yield found
    context.close()


def test_the_page_lists_each_finding_and_nothing_leaves(seen, report_file):
    page = seen.page
    findings = page.locator("ol.findings li")

    assert page.title() == "Drift of shop: 2 alarms"
    assert findings.count() == 2
    assert "100 times what it was" in findings.nth(0).inner_text()
    assert "25 % of the rows have no value" in findings.nth(1).inner_text()
    assert page.locator("section.card").count() == len(made.NAMES) + 1
    assert page.locator("table tbody tr").count() == len(made.NAMES) + 1
    assert seen.messages == []
    assert seen.requests == [report_file.as_uri()]


def test_every_picture_is_drawn_and_says_what_it_shows(seen):
    pictures = seen.page.locator("figure svg")

    assert pictures.count() >= 2 * len(made.NAMES)
    for index in range(pictures.count()):
        assert pictures.nth(index).get_attribute("role") == "img"
        assert len(pictures.nth(index).get_attribute("aria-label")) > 20
        box = pictures.nth(index).bounding_box()
        assert box["width"] > 100
        assert box["height"] > 10


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_at_any_width(seen, width):
    seen.page.set_viewport_size({"width": width, "height": 800})
    beyond = seen.page.evaluate(
        """() => [...document.querySelectorAll('main *')]
        .filter(node => !node.closest('.table') && !node.closest('svg'))
        .filter(node => node.getBoundingClientRect().right > innerWidth + 0.5)
        .map(node => node.outerHTML.slice(0, 80))"""
    )

    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    assert beyond == []


def test_every_text_stands_out_from_its_ground(seen):
    contrasts = seen.page.evaluate(_CONTRASTS)

    assert len(contrasts) > 60
    assert [one for one in contrasts if one[0] < 4.5] == []


def test_it_is_read_with_the_keyboard_alone(seen):
    page = seen.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#column-amount")
    assert page.locator("section:target h3").inner_text() == "amount"

    quiet = page.locator("#column-during_night")
    assert quiet.is_visible()
    page.locator("#only").focus()
    page.keyboard.press("Space")
    assert not quiet.is_visible()
    assert page.locator("#column-amount").is_visible()


def test_names_are_text_and_never_markup(chromium, tmp_path):
    names = ['<img src=x onerror="alert(1)">', "a & b_<script>", "'\"><svg onload=alert(2)>"]
    when = made.times(ROWS, 14)
    profile = make_profile(names, made.ordinary(ROWS, 1), when)
    sketch = PeriodSketch(profile.columns)
    sketch.add(list(made.ordinary(ROWS, 2).T * 7))
    report = DriftReport(
        names[0], names[1], names[2], Period(0, 1), compare(sketch, 14), (names[0],)
    )
    path = tmp_path / "page.html"
    path.write_text(drift_page(report), encoding="utf-8")

    page = chromium.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())

    assert set(page.locator("h3").all_inner_texts()) == set(names)
    assert page.locator("img, script, svg[onload]").count() == 0
    assert messages == []
    page.close()

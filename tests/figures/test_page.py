"""The one page: everything in one file, for eyes, screen readers, phones and printers."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from conftest import flat, make_experiment
from matplotlib.figure import Figure

from analysis.words import Section
from figures.all import experiment_page
from figures.page import Page, html
from machine.files import write_text

VOID = {"meta", "path", "use", "rect", "image", "br"}


class Parsed(HTMLParser):
    """The text of a page, its attributes, and whether its tags are closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data.split()

    def values(self, name):
        return [value for key, value in self.attributes if key == name]

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def page():
    metrics, metadata = make_experiment(3)
    metadata["data"]["path"] = "<script>alert('$&')</script>.npy"
    return experiment_page(metrics, metadata)


@pytest.fixture(scope="module")
def figures(page):
    drawn = page.draw()
    return {name: drawn[name] for name in ("3_metrics_comparison", "9_summary")}


@pytest.fixture(scope="module")
def text(page, figures):
    return html(page, figures)


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_it_says_what_the_report_says_and_shows_every_figure(page, figures, parsed):
    assert not parsed.open
    for section in page.sections + page.details:
        for part in section.parts:
            cells = [part] if isinstance(part, str) else [cell for row in part for cell in row]
            for cell in cells:
                assert flat(cell) in parsed.text
    described = parsed.values("aria-label")
    assert sorted(described) == sorted(figure.get_label() for figure in figures.values())
    assert all(len(text) > 40 for text in described)


def test_it_needs_no_other_file_and_runs_nothing_of_the_data(text, parsed):
    assert "<script" not in text
    elsewhere = [value for key in ("src", "href", "xlink:href") for value in parsed.values(key)]
    assert all(value.startswith(("#", "data:")) for value in elsewhere)
    assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_unique_and_every_reference_is_to_one_of_them(text, parsed):
    ids = parsed.values("id")
    assert len(set(ids)) == len(ids)
    used = re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', text)
    assert used and {a or b for a, b in used} <= set(ids)


def test_a_browser_shows_it_on_a_phone_and_on_a_desk(page, figures, tmp_path):
    browsers = pytest.importorskip("playwright.sync_api")
    write_text(tmp_path / "page.html", html(page, figures))
    with browsers.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                args=["--no-sandbox"], executable_path=shutil.which("chromium")
            )
        except browsers.Error:
            pytest.skip("Playwright has no Chromium here")
        for width, scheme in ((390, "dark"), (1280, "light")):
            view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            seen = []
            for event in ("console", "request"):
                view.on(event, lambda _, event=event, seen=seen: seen.append(event))
            view.goto((tmp_path / "page.html").as_uri())
            assert seen == ["request"]
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            for box in view.locator("svg").all():
                assert 0 < box.bounding_box()["width"] <= width
        browser.close()


def test_without_figures_it_is_a_page_too():
    page = Page(
        "Steps", [Section("", ["so fast"]), Section("S 64", [[["a", "b"], ["1", "2"]]])], [], dict
    )
    assert "so fast" in Parsed(html(page, {})).text


def test_a_figure_without_words_has_an_empty_label():
    page = Page("x", [Section("", ["y"])], [], dict)
    assert '<figure role="img" aria-label="">' in html(page, {"f": Figure()})

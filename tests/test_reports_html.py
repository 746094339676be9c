import html.parser
import re
from pathlib import Path

import pytest

from reports import html as page_module
from reports.html import SECTIONS, contents_of
from reports.report import build
from tests.test_reports_report import write_study

HERE = Path(page_module.__file__).parent
STYLES = "".join(path.read_text() for path in sorted((HERE / "templates").glob("*.css")))
SCHEMES = dict(zip(("light", "dark", "print"), re.findall(r":root \{(.*?)\}", STYLES, re.DOTALL), strict=True))
GROUNDS = ("paper", "card", "faint")
TEXTS, DRAWINGS = ("ink", "quiet", "best", "default", "warn"), ("random", "pruned")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build(write_study(tmp_path_factory.mktemp("study") / "runs"), num_resamples=20).read_text()


class Elements(html.parser.HTMLParser):
    """Every element with its attributes and the elements that it lies in."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), [name for name, _ in self.inside]))
        if tag not in ("meta", "br", "input", "img"):
            self.inside.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes), [name for name, _ in self.inside]))

    def handle_endtag(self, tag):
        assert self.inside.pop()[0] == tag


def test_the_contents_are_the_sections_that_are_there_whoever_added_them():
    sections = [
        "<header><h1>Title</h1></header>",
        '<section id="one" class="small">\n<h2>Trial 3 &amp; <code>lr</code></h2><h2>not this</h2></section>\n',
        "",
        '<section id="two">\n<h2 class="x">Second</h2></section><section id="three">\n<h2>Third</h2></section>',
        '<section id="without">\n<p>heading</p></section>',
    ]
    expected = [("one", "Trial 3 & lr"), ("two", "Second"), ("three", "Third")]
    assert list(contents_of(sections)) == expected


def test_every_section_of_the_page_is_in_its_contents_and_every_link_leads_to_one(page):
    elements = Elements(page).found
    ids = [attributes["id"] for _, attributes, _ in elements if "id" in attributes]
    sections = [attributes["id"] for tag, attributes, _ in elements if tag == "section"]
    links = [attributes["href"] for tag, attributes, _ in elements if tag == "a" and "nav" in _]
    assert len(ids) == len(set(ids))
    assert links == ["#report", *(f"#{name}" for name in sections)]
    assert len(sections) >= 8


def test_there_is_one_title_and_no_level_of_headings_is_left_out(page):
    levels = [int(tag[1]) for tag, _, _ in Elements(page).found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_every_drawing_has_a_name_or_is_hidden_from_those_who_cannot_see_it(page):
    drawings = [attributes for tag, attributes, inside in Elements(page).found if tag == "svg" and "svg" not in inside]
    assert len(drawings) > 10
    for attributes in drawings:
        named = attributes.get("role") == "img" and attributes.get("aria-label", "").strip()
        assert named or attributes.get("aria-hidden") == "true", attributes


def test_every_table_says_what_its_columns_are(page):
    scopes = [attributes.get("scope") for tag, attributes, _ in Elements(page).found if tag == "th"]
    assert set(scopes) == {"col", "row"}


def luminance(colour):
    """Relative, of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_as_wcag_defines_it():
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.005)  # the standard's own example of enough


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_a_contrast_of_4_5_and_drawings_of_3_on_every_ground(scheme):
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", SCHEMES[scheme]))
    for ground in GROUNDS:
        for names, needed in ((TEXTS, 4.5), (DRAWINGS, 3)):
            low = {name: contrast(colours[name], colours[ground]) for name in names}
            assert {name: ratio for name, ratio in low.items() if ratio < needed} == {}, ground
    assert contrast(colours["best"], colours["best-soft"]) >= 4.5
    for name in ("warn", "ink"):
        assert contrast(colours[name], colours["warn-soft"]) >= 4.5


def test_nothing_moves_but_for_those_who_did_not_ask_for_stillness():
    css = STYLES + "".join(path.read_text() for path in sorted((HERE / "sections").glob("*.css")))
    allowed = re.sub(r"@media \(prefers-reduced-motion: no-preference\) \{.*?\}\s*\}", "", css, flags=re.DOTALL)
    assert not re.search(r"\b(transition|animation|scroll-behavior)\b", allowed)


def test_all_sections_have_a_view_and_a_template():
    for name in SECTIONS:
        assert (HERE / "sections" / f"{name}.html").exists()
        assert (HERE / "sections" / f"{name}.py").exists()

"""The report's page in headless Chromium, which is spoken to over its DevTools protocol through two pipes."""

import base64
import contextlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
import unicodedata
import zlib

import pytest

from reports.report import build
from tests.test_reports_report import write_study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium on PATH (Debian package chromium)")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",  # commands on descriptor 3, answers on 4: no port, and no package to speak through it
)
PATIENCE_S = 60
DESK, PHONE, PAPER = (1400, 900), (420, 800), (673, 950)  # CSS pixels; A4 less the page's margins of 16 mm

SHOWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
"""Waits until the browser has drawn what there is to draw, and run what follows from it."""


class Browser:
    """A browser with one page."""

    def __init__(self, profile):
        moved = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
        command = ["sh", "-c", moved, "sh", BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._numbers = itertools.count(1)
        self._received = b""
        self._session = {}
        self.events = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Send a command and wait for its answer; what happens meanwhile is kept in `events`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        answer = self._read(lambda message: message.get("id") == number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self, is_wanted):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            whole, end, rest = self._received.partition(b"\0")
            if end:
                self._received = rest
                message = json.loads(whole)
                if is_wanted(message):
                    return message
                self.events.append(message)
            elif select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                chunk = os.read(self._process.stdout.fileno(), 1 << 20)
                assert chunk, "the browser has ended"
                self._received += chunk
            else:
                raise TimeoutError(f"the browser said nothing for {PATIENCE_S} s")

    def open(self, path, *, size=DESK, scheme="light", media="", scripts=True):
        """Show a file, as if on a screen of this size, or as if printed."""
        width, height = size
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 760
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read(lambda message: "method" in message))

    def value(self, expression):
        """What a JavaScript expression is."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, modifiers=0):
        """Press a key and let it go."""
        code = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, " ": 32, "ArrowRight": 39}[key]
        typed = {"text": {"Enter": "\r", " ": " "}[key]} if key in ("Enter", " ") else {}
        shared = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def close(self):
        """End the browser; its own process is waited for."""
        with contextlib.suppress(Exception):
            self._session = {}
            self.call("Browser.close")
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of four trials with everything that the page has a section for."""
    study = write_study(tmp_path_factory.mktemp("study") / "runs")
    lost = {"event": "trial_interrupted", "trial": 1, "cause": "node_lost", "counts": False}
    with (study / "events.jsonl").open("a") as events:
        events.write(f"{json.dumps(lost)}\n")
    return build(study, num_resamples=20)


def visible(browser, selector):
    """The texts of what is shown of a selector."""
    return browser.value(
        f"[...document.querySelectorAll({json.dumps(selector)})].filter((e) => e.checkVisibility())"
        ".map((e) => e.textContent.trim())"
    )


# -------- without an error, without a network, without a script


@pytest.mark.parametrize("size", [DESK, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_shown_without_an_error_and_asks_the_network_for_nothing(browser, page, size, scheme):
    browser.open(page, size=size, scheme=scheme)
    browser.value(SHOWN)
    complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event["params"] for event in browser.events if event["method"] in complaints] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked == [page.as_uri()]


def test_the_pages_own_policy_keeps_it_from_the_network(browser, page, tmp_path):
    asking = '<script>fetch("http://127.0.0.1:9/").catch(() => { document.title = "refused"; });</script></body>'
    (tmp_path / "page.html").write_text(page.read_text().replace("</body>", asking))
    browser.open(tmp_path / "page.html")
    browser.value("new Promise((resolve) => setTimeout(resolve))")
    said = [event["params"]["entry"]["text"] for event in browser.events if event["method"] == "Log.entryAdded"]
    assert any("Content Security Policy" in text for text in said)


def test_without_scripts_the_page_says_the_same(browser, page):
    told = {}
    for scripts in (True, False):
        browser.open(page, scripts=scripts)
        told[scripts] = browser.value("document.querySelector('main').innerText").split()
        assert browser.value("document.querySelectorAll('thead button').length > 0") is scripts
    assert told[True] == told[False]
    assert len(told[False]) > 500


# -------- room


OVERFLOWING = """((screen) => {
  const inside = (e) => e.closest(".scroll, pre, .visually-hidden, .skip, [hidden]") !== null;
  const wide = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !inside(e))
    .filter((e) => !(e instanceof SVGElement) || e.tagName === "svg")
    .filter((e) => e.getBoundingClientRect().right > screen + 1);
  const named = wide.map((e) => `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 40)}`);
  return [document.documentElement.scrollWidth, named];
})"""
CUT = """[...document.querySelectorAll("main .scroll, main pre, main table, main svg")]
  .filter((e) => e.checkVisibility())
  .filter((e) => e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > window.innerWidth + 1)
  .map((e) => `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.trim().slice(0, 40)}`)"""


@pytest.mark.parametrize("size", [DESK, (1024, 768), PHONE, (320, 640)])
def test_nothing_is_wider_than_the_screen(browser, page, size):
    browser.open(page, size=size)
    width, wide = browser.value(f"{OVERFLOWING}({size[0]})")
    assert wide == []
    assert width <= size[0]


def test_on_paper_nothing_is_cut_and_what_can_be_opened_is_open(browser, page):
    browser.open(page, size=PAPER, media="print")
    assert browser.value(CUT) == []
    heights = browser.value("[...document.querySelectorAll('details pre, details table')].map((e) => e.clientHeight)")
    assert len(heights) >= 2
    assert min(heights) > 20
    assert visible(browser, ".contents, .skip, #tip") == []


def test_printed_it_is_several_pages_that_hold_the_headline_and_the_tables(browser, page):
    browser.open(page)
    answer = browser.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
    sheets = texts_of_pdf(base64.b64decode(answer["data"]))
    assert len(sheets) > 1
    headline = visible(browser, ".headline .number")[0]
    assert headline in sheets[0]
    whole = "".join(sheets)
    for heading in visible(browser, "h2"):
        assert squeezed(heading) in whole
    assert "non_finite:thelossisnan" in whole  # the last row of the table of trials
    assert "max_train_patients:1500" in whole  # of the configuration, which is folded on the screen


def squeezed(text):
    return re.sub(r"\s+", "", text)


def texts_of_pdf(pdf):
    """The text of every page of a PDF as Chromium writes it, without white space."""
    objects = {int(number): body for number, body in re.findall(rb"(\d+) 0 obj\n(.*?)\nendobj", pdf, re.DOTALL)}

    def stream(number):
        body = objects[number].split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0]
        return zlib.decompress(body) if b"FlateDecode" in objects[number] else body

    fonts = {}
    for number, body in objects.items():
        if found := re.search(rb"/ToUnicode (\d+) 0 R", body):
            fonts[number] = letters_of(stream(int(found[1])))
    pages = [body for body in objects.values() if re.search(rb"/Type /Page\b", body)]
    return [text_of_page(stream(int(re.search(rb"/Contents (\d+) 0 R", body)[1])), fonts) for body in pages]


def letters_of(table):
    """What each code of a font stands for, by the code as it is written."""
    letters = {}
    for block in re.findall(rb"beginbfchar(.*?)endbfchar", table, re.DOTALL):
        for code, text in re.findall(rb"<(\w+)> <(\w+)>", block):
            letters[code.upper()] = bytes.fromhex(text.decode()).decode("utf-16-be")
    for block in re.findall(rb"beginbfrange(.*?)endbfrange", table, re.DOTALL):
        for first, last, text in re.findall(rb"<(\w+)> <(\w+)> <(\w+)>", block):
            for step in range(int(last, 16) - int(first, 16) + 1):
                letters[b"%0*X" % (len(first), int(first, 16) + step)] = chr(int(text, 16) + step)
    return letters


def text_of_page(content, fonts):
    letters, width, text = {}, 4, ""
    for font, shown in re.findall(rb"/F(\d+) [\d.]+ Tf|<(\w+)> Tj", content):
        if font:
            letters = fonts.get(int(font), {})
            width = len(next(iter(letters), b"0000"))
        text += "".join(letters.get(shown[at : at + width].upper(), "?") for at in range(0, len(shown), width))
    return squeezed(unicodedata.normalize("NFKC", text))  # takes ligatures apart


# -------- the keyboard


MARK_STOPS = """(() => {
  const stops = [...document.querySelectorAll("a[href], button, summary, input, select, [tabindex='0']")]
    .filter((e) => e.checkVisibility({ contentVisibilityAuto: true }));
  stops.forEach((e, number) => { e.dataset.stop = number; });
  return stops.length;
})()"""
AT = """(() => {
  const at = document.activeElement, style = getComputedStyle(at);
  return [at.dataset.stop ?? null, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1];
})()"""


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_tab_reaches_everything_that_can_be_operated_shows_where_it_is_and_gets_out_again(browser, page, size):
    browser.open(page, size=size)
    browser.value(SHOWN)
    number = browser.value(MARK_STOPS)
    assert number >= 8
    reached = []
    for _ in range(number):
        browser.press("Tab")
        stop, is_outlined = browser.value(AT)
        assert is_outlined, f"stop {stop}"
        reached.append(int(stop))
    assert reached == list(range(number))  # in the order of the page
    browser.press("Tab")
    assert browser.value(AT)[0] in (None, "0")  # out of the page, or around


def test_headings_sort_by_enter_and_by_space(browser, page):
    browser.open(page)
    order = "[...document.querySelectorAll('.trials tbody tr')].map((row) => row.dataset.trial).join()"
    browser.value("document.querySelectorAll('.trials thead button')[2].focus()")  # the value
    found = []
    for key in ("Enter", " "):
        browser.press(key)
        sorted_as = "document.activeElement.closest('th').getAttribute('aria-sort')"
        found.append((browser.value(order), browser.value(sorted_as)))
    assert found == [("1,3,0,2", "ascending"), ("2,0,1,3", "descending")]


def test_the_first_tab_offers_to_skip_the_contents(browser, page):
    browser.open(page)
    browser.press("Tab")
    assert browser.value(
        "document.activeElement.getBoundingClientRect().left >= 0 && document.activeElement.textContent"
    )
    browser.press("Enter")
    assert browser.value("document.activeElement.id") == "report"


def test_what_scrolls_can_be_scrolled_with_the_keyboard_and_has_a_name(browser, page):
    browser.open(page, size=PHONE)
    browser.value(SHOWN)
    scrolls = """[...document.querySelectorAll("main *")].filter((e) => e.checkVisibility())
      .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "auto")
      .map((e) => [e.tabIndex, e.getAttribute("role"), Boolean(e.ariaLabel)])"""
    found = browser.value(scrolls)
    assert found
    assert all(region == [0, "region", True] for region in found)


# -------- contents


def test_the_contents_lead_to_every_section_and_stay_small(browser, page):
    browser.open(page)
    sections = browser.value(
        "[...document.querySelectorAll('main section')].map((e) => [e.id, e.querySelector('h2').textContent])"
    )
    links = browser.value("[...document.querySelectorAll('.contents a')].map((e) => [e.hash.slice(1), e.textContent])")
    assert links == [["report", "Summary"], *sections]
    assert len(visible(browser, ".contents a")) == len(links)
    box = "document.querySelector('.contents').getBoundingClientRect()"
    assert browser.value(f"{box}.width") < 200
    assert browser.value(f"{box}.height") < DESK[1]
    browser.value("scrollTo(0, 2000)")
    assert browser.value(f"{box}.top") == 0  # it stays in sight


def test_on_a_phone_the_contents_are_one_line_that_opens_and_leads_under_itself(browser, page):
    browser.open(page, size=PHONE)
    height = "document.querySelector('.contents').offsetHeight"
    assert browser.value(height) < 50
    assert visible(browser, ".contents a") == []
    browser.press("Tab")
    browser.press("Tab")
    browser.press("Enter")
    assert len(visible(browser, ".contents a")) > 8
    assert browser.value(height) < PHONE[1]
    browser.value("document.querySelector('.contents a[href=\"#trials\"]').focus()")
    browser.press("Enter")
    browser.value(SHOWN)
    assert browser.value(height) < 50
    top = browser.value("document.querySelector('#trials h2').getBoundingClientRect().top")
    assert browser.value(height) <= top < PHONE[1] / 2


def test_the_contents_say_which_section_is_read(browser, page):
    browser.open(page)
    current = "[...document.querySelectorAll('.contents a[aria-current]')].map((e) => e.textContent)"
    assert browser.value(current) == ["Summary"]
    browser.value("document.querySelector('#trials').scrollIntoView()")
    browser.value(
        "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(resolve))))"
    )
    assert browser.value(current) == ["All trials"]


# -------- eyes


CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !e.checkVisibility() || e.closest("script, style, title, .visually-hidden, .skip")) continue;
    const style = getComputedStyle(e), colour = rgba(e instanceof SVGElement ? style.fill : style.color);
    const [light, dark] = [luminance(colour), luminance(behind(e))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if (ratio < needed) low.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
})()"""


@pytest.mark.parametrize(("scheme", "media"), [("light", ""), ("dark", ""), ("light", "print")])
def test_every_text_stands_out_from_what_is_behind_it(browser, page, scheme, media):
    browser.open(page, scheme=scheme, media=media)
    assert browser.value(CONTRAST) == []  # WCAG 2.2, AA: 4.5 to 1, and 3 to 1 for large text


def test_nothing_moves_for_those_who_asked_for_it(browser, page):
    browser.open(page)  # which asks for reduced motion
    assert browser.value("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert browser.value("document.getAnimations().length") == 0
    durations = "[...document.querySelectorAll('*')].map((e) => getComputedStyle(e).transitionDuration)"
    assert set(browser.value(durations)) == {"0s"}


def test_a_curve_says_which_trial_it_is(browser, page):
    browser.open(page)
    x, y = browser.value("""(() => {
      const mark = document.querySelector(".chart.large .curve[data-trial='1'] circle");
      mark.scrollIntoView({ block: "center" });
      const end = mark.getBoundingClientRect();
      return [end.x + 2, end.y + 2];
    })()""")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    said = browser.value("document.getElementById('tip').innerText.replace(/\\s+/g, ' ')")
    assert said == "Trial 1 · pruned epoch 2 (pretrain): 0.6300"

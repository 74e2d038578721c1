"""The page in a real browser: it opens from the disk, loads nothing, and fits a phone."""

import pytest
from browser import FOUND, Browser
from lineages import BETTER, HOSTILE, ROWS, UNKNOWN, VERDICTS, kif_state, lineage

from perdure.reporting.making import report


pytestmark = [pytest.mark.own, pytest.mark.skipif(not FOUND, reason="no chromium on this machine")]
TASKS = (HOSTILE, "a-task-with-a-name-as-long-as-it-is-without-any-space", "green")
both_widths = pytest.mark.parametrize("width", [1280, 390])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three methods, one of them with two seeds, unknown cells, and names to be wary of."""
    folder = tmp_path_factory.mktemp("place")
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj_of_all")
    kif = {"method": "recurrent_kif", "state": kif_state(3, modules)}
    lineage(folder / "runs/kif", BETTER, tasks=TASKS, **kif)
    lineage(folder / "runs/kif-1", ROWS, tasks=TASKS, seed=1, **kif)
    lineage(folder / "runs/<replay>", UNKNOWN, tasks=TASKS, method="replay")
    lineage(folder / "runs/sequential", ROWS, tasks=TASKS)
    lineage(folder / "runs/judged", ROWS, verdicts=VERDICTS, method="ewc")
    lineage(folder / "runs/new", ROWS[:1])
    _, (page_file, *_) = report([folder / "runs"], folder / "report.html")
    return page_file


@both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_complaint_and_asks_for_nothing_else(browser, page, width, scheme):
    browser.open(page, width, scheme)
    assert browser.value("document.title").startswith("Perdure report: ")
    assert browser.told("Log.entryAdded") == []
    assert browser.told("Runtime.exceptionThrown") == []
    assert browser.told("Runtime.consoleAPICalled") == []
    urls = [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]
    assert urls == [page.resolve().as_uri()]


@both_widths
def test_nothing_is_wider_than_the_page(browser, page, width):
    browser.open(page, width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll("main *")].filter(e => !e.closest(".box, pre"))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"""
    assert browser.value(outside) == []
    scrolled = "[...document.querySelectorAll('.box')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.value(f"{scrolled}.every(e => getComputedStyle(e).overflowX == 'auto')")


@both_widths
def test_every_figure_is_seen_named_and_explained(browser, page, width):
    browser.open(page, width)
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    figures = browser.value("""[...document.querySelectorAll("svg")].map(e => [
        e.getAttribute("role"), e.getAttribute("aria-label"), e.querySelector("title").textContent,
        e.closest("figure").querySelector("figcaption").textContent,
        e.getBoundingClientRect().width, e.getBoundingClientRect().height])""")
    assert len(figures) >= 3 + 3 + 2 * (4 + 2)
    for role, label, title, caption, width_shown, height in figures:
        assert role == "img"
        assert label == title != ""
        assert caption.strip()
        assert min(width_shown, height) > 30
    cut = """[...document.querySelectorAll("svg text")].filter(e => e.getBoundingClientRect().right
        > e.ownerSVGElement.getBoundingClientRect().right + 1).map(e => e.textContent)"""
    assert browser.value(cut) == []


def test_every_label_can_be_read_on_its_ground(browser, page):
    """The contrast of the texts of the verdict and of the heat map, 4.5 to 1 and better."""
    contrast = """(() => {
      const parse = c => c.match(/[0-9.]+/g).map(Number);
      const light = c => { const [r, g, b] = c.map(v => { v /= 255;
        return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
        return .2126 * r + .7152 * g + .0722 * b; };
      const paper = parse(getComputedStyle(document.body).backgroundColor).slice(0, 3);
      const over = (color, below) => { const [r, g, b, a = 1] = parse(color);
        return [r, g, b].map((v, i) => a * v + (1 - a) * below[i]); };
      const behind = e => e == document.body ? paper
        : over(getComputedStyle(e).backgroundColor, behind(e.parentElement));
      const texts = "table.heat td, .badge, .verdict, .headline, .outcomes span, .stage h4, .words";
      return Math.min(...[...document.querySelectorAll(texts)].map(e => {
        const style = getComputedStyle(e), ground = behind(e);
        const pair = [light(ground), light(parse(style.color))].sort((x, y) => y - x);
        return (pair[0] + .05) / (pair[1] + .05); })); })()"""
    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme)
        assert browser.value(contrast) >= 4.5


def test_the_two_schemes_are_two(browser, page):
    grounds = []
    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme)
        grounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(253, 253, 251)", "rgb(21, 23, 26)"]


def test_hostile_names_are_text_in_the_browser_too(browser, page):
    browser.open(page, 1280)
    assert browser.value("document.querySelectorAll('script, replay').length") == 0
    heads = "[...document.querySelectorAll('table.heat thead th')].map(e => e.textContent)"
    assert HOSTILE in browser.value(heads)
    labels = "[...document.querySelectorAll('svg')].map(e => e.getAttribute('aria-label'))"
    assert f"Score of {HOSTILE} over the stages" in browser.value(labels)


def test_folded_lineages_are_printed(browser, page):
    browser.open(page, 800, media="print")
    closed = "[...document.querySelectorAll('details:not([open]) table.heat')]"
    assert browser.value(f"{closed}.length") > 0
    assert browser.value(f"{closed}.every(e => e.checkVisibility())")


def test_boxes_that_scroll_can_be_reached_by_the_keyboard(browser, page):
    browser.open(page, 390)
    boxes = "[...document.querySelectorAll('.box')].filter(e => e.querySelector('table'))"
    assert browser.value(f"{boxes}.every(e => e.tabIndex == 0 && e.ariaLabel)")

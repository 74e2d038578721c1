"""The pages: the site builds and needs no network, and every command and script in them runs.

Each page has an empty folder of its own. There its ```bash and ```python blocks are run in their
order, the latter as one script; its ```yaml blocks are settings that a run takes. A base such as
Qwen/Qwen3-0.6B is a folder with the embedded model. `<!-- exits 2 -->` before a block says how its
last command ends, and `<!-- prints -->` before a ```text block that this command prints it, but for
the numbers. What is not run here: other ```text (output), ```console (`pip install`, and `make`,
which continuous integration runs itself), and the scripts of trl.md, which
tests/methods/recurrent_kif/test_trl.py runs. The cells of a comparison run in this process; what
tests `compare` runs them in processes of their own.
"""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

import perdure
from comparison.grids import run_here
from docs.blocks import PRINTED, blocks, blocks_of, put_base, run_block, words
from hub import Hub, serving
from marks import at_least
from perdure.comparison import processes
from perdure.config import load_config
from perdure.measure.guard.checks import CHECKS
from perdure.measure.matrix import ScoreMatrix, summary
from perdure.measure.metrics import METRICS
from perdure.methods import make
from perdure.models.base import check_quantization


ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
LANGUAGES = {"bash", "console", "json", "python", "text", "yaml"}
# Pages whose commands take long, and of which each is also a test of its verb.
SLOW = ("adapters", "check", "compare", "faq", "merge", "probes", "progress", "report", "verbs")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of a page, and a hub that takes what is pushed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "start", run_here)
    monkeypatch.delenv("PERDURE_DATA", raising=False)
    put_base(tmp_path)
    with serving(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        yield hub


@pytest.mark.parametrize(
    "page",
    at_least([page for page in PAGES if page.stem not in SLOW], PAGES),
    ids=lambda page: page.stem,
)
def test_the_commands_of_a_page_run(page, place, monkeypatch):
    names = {"__name__": "__main__"}
    output = ""
    for status, language, text in blocks(page):
        if language == "bash":
            # Only a push may talk to the hub; everything else is offline.
            with monkeypatch.context() as patch:
                patch.setattr(constants, "HF_HUB_OFFLINE", not text.startswith("perdure push"))
                output = run_block(text, status)
        elif language == PRINTED:
            assert words(text) in words(output), f"{page} prints\n{text}, and not\n{output}"
        elif language == "python" and page.stem != "trl":
            exec(compile(text, str(page), "exec"), names)
    assert bool(place.files) == (page.stem == "verbs")


@every_page
def test_the_yaml_of_a_page_is_one_that_a_run_takes(page):
    for text in blocks_of(page, "yaml"):
        config = load_config(yaml.safe_load(text))
        make(config.method)
        check_quantization(config.quantization, config.adapter)


@every_page
def test_a_page_is_narrow_and_its_blocks_say_what_they_are(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0
    assert set(re.findall(r"^```(\w*)\n.*?^```$", text, re.MULTILINE | re.DOTALL)) <= LANGUAGES
    wide = [line for line in text.splitlines() if len(line) > 110 and not line.startswith("|")]
    assert not wide


def test_the_commands_of_the_readme_run(place):
    rows = {
        "reviews": [("the soup was warm . review :", "good"), ("we waited . review :", "bad")],
        "tickets": [("where is my parcel ? team :", "shipping"), ("it broke . team :", "repair")],
    }
    for name, pairs in rows.items():
        lines = [json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs]
        for suffix in ("", "-test"):
            Path(f"{name}{suffix}.jsonl").write_text("".join(lines))
            Path(f"{name}{suffix}.csv").write_text(
                "prompt,completion\n" + "".join(f"{p},{c}\n" for p, c in pairs)
            )
    (settings,) = blocks_of(README, "yaml")
    Path("stream.yaml").write_text(f"{settings}max_completion_length: 8\n")  # so that it is quick
    lines = [line for text in blocks_of(README, "") for line in text.splitlines()]
    verbs = [line for line in lines if line.startswith("perdure ")]
    inline = re.findall(r"`(perdure run stream\.yaml[^`]*)`", README.read_text(encoding="utf-8"))
    assert len(verbs) >= 4
    assert len(inline) >= 2
    run_block("\n".join([*verbs, *inline]))
    (script,) = blocks_of(README, "python")
    exec(compile(script, "README.md", "exec"), {"__name__": "__main__"})


def test_the_page_of_metrics_has_them_all():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in (*METRICS, *summary(ScoreMatrix((), (), ((),)))):
        assert f"`{name}`" in page


def test_the_page_of_checks_has_them_all():
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (?:a |`)", page, re.MULTILINE) == list(CHECKS)


def test_the_page_of_python_has_every_function_and_every_variable_of_the_environment():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    functions = {name for name in perdure.__all__ if name.islower()} - {"load_config"}
    assert set(re.findall(r"<!-- made: function (\w+) -->", page)) == functions | {
        *("methods", "rules"),
    }
    assert not [name for name in perdure.__all__ if f"perdure.{name}" not in page]
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    read = set(re.findall(r"environ\S*?\W\"(PERDURE_\w+)\"", "\n".join(sources)))
    assert len(read) >= 4
    assert set(re.findall(r"^\| `(PERDURE_\w+)` ", page, re.MULTILINE)) == read


class Loaded(HTMLParser):
    """What a page makes a browser load by itself."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        source = attributes.get("href") if tag == "link" else attributes.get("src")
        if source and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(source)


@every_page
def test_what_a_page_has_from_the_source_is_as_the_source_says(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import docs_tables

    text = page.read_text(encoding="utf-8")
    assert docs_tables.with_tables(text) == text, "run `python scripts/docs_tables.py`"


@every_page
def test_the_types_of_a_page_are_words(page):
    small_prints = re.findall(r"<small>(.*?)</small>", page.read_text(encoding="utf-8"))
    assert not [text for text in small_prints if re.search(r"Optional|Union|NoneType", text)]


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)  # and the page for a wrong address
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not [a for a in Loaded(text).addresses if re.match(r"(\w+:)?//", a)], page.name
    for sheet in tmp_path.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", text), sheet.name
    assert not list((tmp_path / "site").glob("*.py"))

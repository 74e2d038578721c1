"""`report`: lineages in, a page out, and its numbers as Markdown and CSV."""

from collections.abc import Sequence
from pathlib import Path

from engram.errors import EngramError
from engram.lineage.files import write_text
from engram.reporting.page import html
from engram.reporting.read import Run, read
from engram.reporting.text import HEAD, csv_text, markdown


# How the files begin that this verb has written and may write again.
MARKS = {".html": 'content="engram report"', ".md": "<!-- engram report -->", ".csv": HEAD}


def report(folders: Sequence[str | Path], out: str | Path) -> tuple[list[Run], list[Path]]:
    """`engram.api.report`: write the page; the lineages, and the files."""
    page = Path(out)
    if page.suffix not in (".html", ".htm"):
        raise EngramError(f"{page}: the page is HTML; give --out a name that ends in .html")
    if not page.parent.is_dir():
        raise EngramError(f"{page}: its folder does not exist; make it first or give another --out")
    runs = read(folders)
    made = {
        page: html(runs),
        page.with_suffix(".md"): markdown(runs),
        page.with_suffix(".csv"): csv_text(runs),
    }
    for path in made:
        _check_own(path)
    for path, text in made.items():
        write_text(path, text)
    return runs, list(made)


def _check_own(path: Path) -> None:
    """A file that is there already must be an earlier report.

    Raises:
        EngramError: it is something else.
    """
    if not path.exists():
        return
    begin = path.read_bytes()[:500].decode(errors="replace") if path.is_file() else ""
    if MARKS.get(path.suffix, MARKS[".html"]) not in begin:
        raise EngramError(
            f"{path}: is there and is not a report of Engram's; move it away or give another --out"
        )

"""Writing a report on lineages: a page, and its numbers as Markdown and CSV."""

from collections.abc import Sequence
from pathlib import Path

from perdure.errors import PerdureError
from perdure.lineage.files import write_text
from perdure.printable import printable
from perdure.reporting.page import html
from perdure.reporting.read import Run, read
from perdure.reporting.text import CSV_HEADER, csv_text, markdown


# A mark near the start of each file, which shows that it is a report and may be overwritten.
MARKS = {".html": 'content="perdure report"', ".md": "<!-- perdure report -->", ".csv": CSV_HEADER}


def report(folders: Sequence[str | Path], out: str | Path) -> tuple[list[Run], list[Path]]:
    """Write a report as `perdure.api.report` does; return the lineages and the files written."""
    page = Path(out)
    if page.suffix not in (".html", ".htm"):
        raise PerdureError(f"{page}: the page is HTML; use a name that ends in .html for --out")
    if not page.parent.is_dir():
        raise PerdureError(
            f"{page}: its folder does not exist; create it first or use another --out"
        )
    runs = read(folders)
    texts = {
        page: html(runs),
        page.with_suffix(".md"): markdown(runs),
        page.with_suffix(".csv"): csv_text(runs),
    }
    for path in texts:
        _check_is_report(path)
    for path, text in texts.items():
        write_text(path, printable(text))
    return runs, list(texts)


def _check_is_report(path: Path) -> None:
    """Check that a file does not exist or is an earlier report.

    Raises:
        PerdureError: it is another file.
    """
    if not path.exists():
        return
    begin = path.read_bytes()[:500].decode(errors="replace") if path.is_file() else ""
    if MARKS.get(path.suffix, MARKS[".html"]) not in begin:
        raise PerdureError(
            f"{path}: exists and is not a report of Perdure; move it away or use another --out"
        )

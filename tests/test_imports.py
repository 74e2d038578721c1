"""Imports point one way: from each folder or module of the package only to those below it."""

import ast
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path

import perdure


ROOT = Path(perdure.__file__).parent
# From the top. `perdure/__init__.py`, which only names what is public, is above all of them, and so
# is `perdure/__main__.py`.
ORDER = (
    *("cli", "api", "keys", "verbs", "comparison", "reporting", "prepare", "lineage", "methods"),
    *("merging", "train", "measure", "data", "models", "config", "places", "calls"),
    *("writing", "disk"),
    *("shapes", "parsing", "seeds", "processes", "printable", "say", "stopping", "errors"),
)


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a file imports, anywhere in it, as paths of names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "perdure":
            path = tuple(node.module.split(".")[1:])  # type: ignore[union-attr]
            yield from ((*path, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            yield from (tuple(name[1:]) for name in names if name[0] == "perdure")


def home(file: Path) -> str:
    """The folder of a file, or the module that lies in none."""
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def edges() -> Iterator[tuple[str, str, str]]:
    """From where, to where, and the file."""
    for file in sorted(ROOT.rglob("*.py")):
        for path in imports(file):
            if path and home(file) not in ("__init__", "__main__", path[0]):
                yield home(file), path[0], str(file.relative_to(ROOT))


def test_every_import_points_down():
    rank = {name: i for i, name in enumerate(ORDER)}
    assert {source for source, _, _ in edges()} <= set(ORDER)
    assert [edge for edge in edges() if rank.get(edge[1], -1) <= rank[edge[0]]] == []


def test_the_order_names_all_there_is():
    homes = {home(file) for file in ROOT.rglob("*.py")}
    assert set(ORDER) == homes - {"__init__", "__main__"}


def test_a_method_imports_what_is_shared_and_no_other_method():
    for file in sorted((ROOT / "methods").rglob("*.py")):
        method = file.relative_to(ROOT / "methods").parts[0].removesuffix(".py")
        others = {path[1] for path in imports(file) if path[:1] == ("methods",) and path[1:]}
        assert others <= {method, "shared"}, file


def test_a_missing_optional_kernel_of_bitsandbytes_is_not_told(caplog):
    logger = getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "none")
    logger.warning("another warning")
    assert caplog.messages == ["another warning"]

"""`make audit` fails on an advisory that the allow-list does not name."""

import importlib.util
import json
from pathlib import Path

import pytest


pytestmark = pytest.mark.own

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
assert spec
assert spec.loader
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

FOUND = {
    "name": "pillow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": ["1.1"]}],
}
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "own", "skip_reason": "Dependency not found on PyPI"}
ENTRY = 'id = "{}"\npackage = "{}"\nreason = "no image is read"\ndate = 2026-11-26\n'


def run(monkeypatch, capsys, tmp_path, packages, allowed="") -> tuple[int, str]:
    output = packages if isinstance(packages, str) else json.dumps({"dependencies": packages})
    monkeypatch.setattr(audit, "audited", lambda constraints: output)
    (tmp_path / "audit.toml").write_text(allowed)
    status = audit.main(tmp_path / "constraints.txt", tmp_path / "audit.toml")
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize(
    ("packages", "allowed", "status", "words"),
    [
        ([CLEAN], "", 0, "pins compared: 1, advisories allowed: 0\n"),
        ([FOUND, CLEAN], "", 1, "pillow 1.0: PYSEC-1; fixed in 1.1; raise the pin"),
        ([FOUND], "[[allowed]]\n" + ENTRY.format("GHSA-1", "Pillow"), 0, "advisories allowed: 1"),
        ([FOUND], "[[allowed]]\n" + ENTRY.format("GHSA-2", "pillow"), 1, "PYSEC-1"),
        ([FOUND], "[[allowed]]\n" + ENTRY.format("PYSEC-1", "numpy"), 1, "PYSEC-1"),
        ([CLEAN], "[[allowed]]\n" + ENTRY.format("X", "numpy"), 0, "numpy X is in audit.toml, but"),
        ([CLEAN, SKIPPED], "", 0, "nothing is known about 1 more"),
        ([SKIPPED], "", 0, "nothing is known about 1 pins"),
        ("", "", 0, "the advisories cannot be reached"),
        ("Traceback (most recent call last):", "", 0, "the advisories cannot be reached"),
        ([CLEAN], '[[allowed]]\nid = "X"\n', 2, "entry 1: package is missing"),
        ([CLEAN], "[[allowed]]\n" + ENTRY.format("X", "y") + "why = 1\n", 2, "no key why"),
        ([CLEAN], "allowed: none", 2, "error: "),
    ],
)
def test_what_is_found(monkeypatch, capsys, tmp_path, packages, allowed, status, words):
    result = run(monkeypatch, capsys, tmp_path, packages, allowed)
    assert result[0] == status
    assert words in result[1]


def test_the_allow_list_of_the_project_has_reasons_for_pinned_packages():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    packages = {pin.partition("==")[0] for pin in pins}
    allowed = audit.allowed_advisories(ROOT / "audit.toml")
    assert {entry["package"].lower() for entry in allowed} <= packages

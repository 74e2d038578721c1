"""Compare the pinned versions with the known advisories, which `make audit` does.

    python scripts/audit.py [constraints.txt] [audit.toml]

pip-audit asks the package index for the advisories on each pinned version. An advisory that is not
on the allow-list is an error (status 1). An index that cannot be asked says nothing about the pins,
which is one line and no error.
"""

import datetime
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
KEYS = {"id": str, "package": str, "reason": str, "date": datetime.date}
SECONDS = 10  # how long an answer of the index may take
LONGEST = 300  # how long all of them may take, in seconds


def main(constraints: Path = ROOT / "constraints.txt", allowed: Path = ROOT / "audit.toml") -> int:
    """Print what is known about the pinned versions, and return the exit status."""
    try:
        lines, status = judged(audited(constraints), allowed_advisories(allowed))
    except ValueError as error:
        lines, status = [f"error: {allowed}: {error}"], 2
    for line in lines:
        print(f"audit: {line}", file=sys.stderr if status else sys.stdout)
    return status


def audited(constraints: Path) -> str:
    """Return what pip-audit says about the pins of a file, as JSON; "" if it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(constraints)]
    command += ["--no-deps", "--disable-pip", "--vulnerability-service", "pypi"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(SECONDS)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return ""
    if "No module named pip_audit" in run.stderr:
        raise ModuleNotFoundError("pip_audit is not installed; use `make audit`")
    return run.stdout


def allowed_advisories(file: Path) -> list[dict[str, Any]]:
    """Return the entries of the allow-list.

    Raises:
        ValueError: it is not TOML, or an entry lacks a key or has another one.
    """
    entries = tomllib.loads(file.read_text(encoding="utf-8")).get("allowed", [])
    for number, entry in enumerate(entries, start=1):
        for key, kind in KEYS.items():
            if not isinstance(entry.get(key), kind) or not entry[key]:
                raise ValueError(f"entry {number}: {key} is missing or not a {kind.__name__}")
        if other := sorted(entry.keys() - KEYS.keys()):
            raise ValueError(f"entry {number}: no key {other[0]}; valid: {', '.join(KEYS)}")
    return entries


def judged(output: str, allowed: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Return lines about the advisories, and the exit status.

    Args:
        output: the JSON of pip-audit.
        allowed: the entries of the allow-list.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return ["the advisories cannot be reached, so nothing is known about the pins"], 0
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        count = len(packages)
        return [f"no advisories can be reached here, so nothing is known about {count} pins"], 0
    unused = [f"{entry['package']} {entry['id']}" for entry in allowed]
    lines, accepted = [], 0
    for package in asked:
        for advisory in package["vulns"]:
            ids = {advisory["id"], *advisory.get("aliases", ())}
            entries = [e for e in allowed if e["id"] in ids and _is_of(e, package["name"])]
            if entries:
                accepted += 1
                used = [f"{entry['package']} {entry['id']}" for entry in entries]
                unused = [name for name in unused if name not in used]
                continue
            fixed = ", ".join(advisory.get("fix_versions", ())) or "no release"
            lines.append(
                f"{package['name']} {package['version']}: {advisory['id']}; fixed in {fixed}; "
                "raise the pin in constraints.txt, or give a reason in audit.toml"
            )
    status = 1 if lines else 0
    skipped = len(packages) - len(asked)
    lines += [f"{name} is in audit.toml, but is not found any more; delete it" for name in unused]
    unknown = f", nothing is known about {skipped} more" if skipped else ""
    lines.append(f"pins compared: {len(asked)}, advisories allowed: {accepted}{unknown}")
    return lines, status


def _is_of(entry: dict[str, Any], package: str) -> bool:
    """Return whether an entry is of a package, as pip compares names."""
    return re.sub(r"[-_.]+", "-", entry["package"]).lower() == package.lower()


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))

"""Where the experts of a run are whose stages are merged (`perdure.prepare.merged`)."""

from pathlib import Path
from typing import Any


EXPERTS = "-experts"  # what the folder of the experts has after the name of the merged lineage


def experts_folder(path: Path, merge: Any) -> Path:
    """Return the folder of the experts that are merged in the lineage of a folder.

    It is named by the key `merge`, or stands beside the lineage.
    """
    named = merge.get("experts") if isinstance(merge, dict) else None
    return Path(named) if named else path.with_name(path.name + EXPERTS)


def statistics_folder(experts: Path, needs: str, stage: int) -> Path:
    """Return the folder of what a rule of merging needs to know of an expert."""
    return experts.with_name(f"{experts.name}-statistics") / f"{needs}-{stage}"


def merged_folder(path: Path) -> Path | None:
    """Return the folder of the lineage in which the stages of a folder are merged, if it is one."""
    if not path.name.endswith(EXPERTS) or path.name == EXPERTS:
        return None
    merged = path.with_name(path.name.removesuffix(EXPERTS))
    return merged if (merged / "lineage.yaml").is_file() else None


def merge_rule(merge: Any) -> str:
    """Return the name of the rule in a checked value of the key `merge`."""
    return merge if isinstance(merge, str) else str(merge["rule"])

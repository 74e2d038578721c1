"""Folders that are laid out as a dataset on the hub is: JSON lines and a card."""

import json

import yaml


def write_dataset(folder, splits, names=None, config="default"):
    """Rows by split as a folder; `names` are those of the column `label`, or (column, names)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{config}-{split}.jsonl").write_text(text)
        files.append({"split": split, "path": f"{config}-{split}.jsonl"})
    first = next(iter(splits.values()))[0]
    column, labels = names if isinstance(names, tuple) else ("label", names)
    card = {"configs": [{"config_name": config, "data_files": files}]}
    if labels:
        kinds = {str: "string", int: "int64"}
        features = [
            {
                "name": key,
                "dtype": {"class_label": {"names": {str(i): n for i, n in enumerate(labels)}}}
                if key == column
                else kinds[type(value)],
            }
            for key, value in first.items()
        ]
        card["dataset_info"] = [{"config_name": config, "features": features}]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return folder

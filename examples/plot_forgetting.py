"""Plots forgetting: the score of each task after every stage, with one panel for each lineage.

    python examples/plot_forgetting.py quickstart quickstart/forgetting.svg

All lineages in a folder are plotted side by side, with the same axes.
"""

import argparse
from pathlib import Path

import matplotlib


matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "perdure"  # the same scores give the same file

import matplotlib.pyplot as plt

from perdure import Lineage
from perdure.measure.matrix import overall


NAMES = {
    "default": "Recurrent-KIF, anchored",  # that of `perdure init`
    "recurrent_kif": "Recurrent-KIF",
    "replay": "replay",
    "sequential": "plain fine-tuning",
}
MARKERS = "os^Dv*PX"


def main(folder: Path, output: Path) -> None:
    lineages = {p.parent.name: Lineage(p.parent) for p in folder.glob("*/lineage.yaml")}
    order = sorted(lineages, key=lambda name: overall(lineages[name].matrix()) or 0)
    figure, axes = plt.subplots(
        1, len(order), figsize=(3.4 * len(order), 3.1), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], order, strict=True):
        matrix = lineages[name].matrix()
        for j, task in enumerate(matrix.tasks):
            stages = range(matrix.learned_at[j], matrix.last + 1)
            scores = [matrix.rows[i][j] for i in stages]
            axis.plot(stages, scores, marker=MARKERS[j % len(MARKERS)], label=task, clip_on=False)
        axis.set_title(f"{NAMES.get(name, name)}  (OP {overall(matrix):.2f})", fontsize=11)
        axis.set_xticks(range(1, matrix.last + 1), matrix.tasks, rotation=20, fontsize=8)
        axis.set_xlabel("after learning ...")
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("score on test rows")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    main(**vars(parser.parse_args()))

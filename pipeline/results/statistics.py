"""How sure the numbers of cells are, and which of two cells is better."""

from dataclasses import replace
from itertools import combinations
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from deeplab.errors import DataError
from pipeline.results.records import Result
from pipeline.settings.params import Params
from pipeline.settings.places import Places

if TYPE_CHECKING:
    from deeplab.counts import Counts
    from deeplab.intervals import Interval

MAX_PAIRS = 200  # of cells; a minute or two for a large data set, where all pairs of 200 cells would take hours
NOTE = (
    "95 % over validation images, bootstrap of {resamples} resamples: what another set of as many images would change. "
    "Where a cell has several seeds, low_seeds and high_seeds also hold what another seed would change; with one "
    "seed that is not known."
)

Named = tuple[str, Cell, "list[Counts]"]


def read_runs(results: list[Result], params: Params, places: Places) -> "list[Counts]":
    """The counts behind `results`, which are those of one cell. Raises DataError when they give other scores."""
    from deeplab.counts import read_counts
    from deeplab.metrics import score

    cell = results[0].cell
    path = places.counts(params.cell(cell).dataset, cell)
    protocol = next(iter(params.protocols))
    held = read_counts(path)
    for result in results:
        counts = held.get((result.seed, protocol))
        miou = round(score(counts.matrix).mean_iou, 6) if counts else None
        if miou != result.scores["mIoU"]:
            raise DataError(
                f"{path}: seed {result.seed} has mIoU {miou}, but the record {result.scores['mIoU']}. "
                f"Run: dvc repro -f {params.stage('evaluate', cell)}"
            )
    return [held[result.seed, protocol] for result in results]


def describe(found: "dict[str, list[Counts]]", cells: dict[str, Cell]) -> dict[str, Any]:
    """The statistics of the cells in `found`, as plain values; `found` has the counts of each seed of a cell."""
    from deeplab.intervals import LEVEL, RESAMPLES, comparable

    both = (pair for pair in combinations(found, 2) if comparable(found[pair[0]], found[pair[1]]))
    pairs = sorted(both, key=lambda pair: len(differing(cells[pair[0]], cells[pair[1]])))
    note = NOTE.format(resamples=RESAMPLES)
    if len(pairs) > MAX_PAIRS:
        note += f" Only the {MAX_PAIRS} of {len(pairs)} pairs are here that differ in the fewest settings."
    return {
        "level": LEVEL,
        "samples": RESAMPLES,
        "cells": {name: describe_cell(runs) for name, runs in found.items()},
        "pairs": [describe_pair(*((name, cells[name], found[name]) for name in pair)) for pair in pairs[:MAX_PAIRS]],
        "note": note,
    }


def describe_cell(runs: "list[Counts]") -> dict[str, Any]:
    """The mIoU of a cell with its intervals, as shares."""
    from deeplab.intervals import interval, with_seeds

    images, scores, folds = interval(runs), mious(runs), in_folds(runs)
    return {
        "mIoU": round(images.estimate, 6),
        **ends(images),
        "images": sum(map(len, {tuple(run.images) for run in runs})),
        **({"folds": len(scores)} if folds else {"seeds": len(scores)}),
        ("fold_std" if folds else "seed_std"): round(stdev(scores), 6) if len(scores) > 1 else None,
        **ends(None if folds else with_seeds(images, scores), "_seeds"),
    }


def describe_pair(one: Named, other: Named) -> dict[str, Any]:
    """Which of two cells is better, by how much, and whether the difference is clear."""
    from deeplab.intervals import difference, with_seeds

    if fmean(mious(one[2])) < fmean(mious(other[2])):
        one, other = other, one
    images = difference(one[2], other[2])
    both = None if in_folds(one[2]) else with_seeds(images, mious(one[2]), mious(other[2]))
    shown = both or images
    clear = shown.low > 0
    value, low, high = (100 * share for share in (shown.estimate, shown.low, shown.high))
    shared, better, than = short_names(*one[:2], *other[:2])
    verdict = f"{better} better than {than} by" if clear else f"{better} and {than} do not differ clearly:"
    return {
        "better": one[0],
        "than": other[0],
        "difference": round(images.estimate, 6),
        **ends(images),
        **ends(both, "_seeds"),
        "clear": clear,
        "sentence": f"{shared}{verdict} {value:.1f} [{low:.1f}, {high:.1f}]",
    }


def in_folds(runs: "list[Counts]") -> bool:
    """Whether the runs differ in their images. Their spread is that of the images too, so it says nothing of seeds."""
    return len({tuple(run.images) for run in runs}) > 1


def require_images(runs: "list[Counts]") -> None:
    """Raise DataError for a run with fewer than two images with labelled pixels: it has no interval."""
    for number, run in enumerate(runs):
        if (count := int(run.totals()[1].any(axis=1).sum())) < 2:
            where = f"fold {number} has " if in_folds(runs) else ""
            raise DataError(f"{where}{count} images with labelled pixels: an interval over images needs two or more")


def mious(runs: "list[Counts]") -> list[float]:
    """The mIoU of each seed."""
    from deeplab.metrics import score

    return [score(each.matrix).mean_iou for each in runs]


def ends(found: "Interval | None", suffix: str = "") -> dict[str, float | None]:
    """The ends of an interval, rounded, under the names `low` and `high` with `suffix`."""
    values = (round(found.low, 6), round(found.high, 6)) if found else (None, None)
    return dict(zip((f"low{suffix}", f"high{suffix}"), values, strict=True))


def differing(one: Cell, other: Cell) -> list[str]:
    """Which of backbone and output stride differ between two cells, and `other` when anything else does."""
    kinds = [kind for kind in ("backbone", "output_stride") if getattr(one.model, kind) != getattr(other.model, kind)]
    model = replace(one.model, backbone=other.model.backbone, output_stride=other.model.output_stride)
    return kinds if replace(one, model=model) == other else [*kinds, "other"]


def short_names(one: str, one_cell: Cell, other: str, other_cell: Cell) -> tuple[str, str, str]:
    """What two cells share, and a short name for each in a comparison: `resnet50c: `, `OS8`, `OS16`."""
    kinds = differing(one_cell, other_cell)
    strides = [f"OS{cell.model.output_stride}" for cell in (one_cell, other_cell)]
    backbones = [cell.model.backbone for cell in (one_cell, other_cell)]
    if kinds == ["output_stride"]:
        return f"{backbones[0]}: ", strides[0], strides[1]
    if kinds == ["backbone"]:
        return f"{strides[0]}: ", backbones[0], backbones[1]
    return "", one, other

"""Evaluate a trained cell: every seed under every protocol, into metrics, a record, counts, plots and figures.

The metrics are the few numbers that `dvc metrics` shows, under the first protocol, which fills the tables. The record
has all scores and what they were measured on and with. Everything depends on settings, data, weights and versions of
the libraries alone: the same inputs give the same bytes.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.errors import DataError
from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.progress import shown
from pipeline.results.splits import folder_of
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.training.provenance import file_sha256, versions

if TYPE_CHECKING:
    from deeplab.counts import Counts
    from deeplab.measures import Measure
    from deeplab.store import Split, Store
    from pipeline.results.records import Scores

# Seed and protocol -> the confusion counts of each image, and the measures that `columns` of params.yaml asks for.
Found = dict[tuple[int, str], "Counts"]
Measured = dict[tuple[int, str], "dict[str, Measure]"]


def run(name: str, places: Places = Places()) -> None:
    """Evaluate the cell `name` and write what the first line of this file lists.

    Raises FileNotFoundError for missing weights, DataError for weights of other settings, data or classes.
    """
    from deeplab.store import Store
    from pipeline.training.weights import check_weights

    params = load_params(places.params)
    cell = params.cell(name)
    store = Store(places.store(cell.dataset))
    further = open_splits(cell.dataset, store, params, places)
    files = {seed: places.weights(name) / f"seed{seed}.safetensors" for seed in params.runs[name]}
    code = check_weights(files.values(), name, cell, store)

    from deeplab.counts import write_counts
    from deeplab.images import evaluation_images
    from deeplab.metrics import score
    from deeplab.segmenter import read_about
    from pipeline.results.records import Inputs, Record, SplitScores, Start, Weights
    from pipeline.results.scores import describe, mean_shares, write_plots
    from pipeline.training.device import select_device

    images = {seed: evaluation_images(store, cell.recipe, seed) for seed in files}
    found, measured = measure(name, params, store, files, images, figures=places.figures(name))
    others = {
        split: measure(name, params, own, files, dict.fromkeys(files, own.split(split)), on=f" {split}")
        for split, own in further.items()
    }
    scores = {key: score(each.matrix) for key, each in found.items()}
    main_protocol = next(iter(params.protocols))
    extra: dict[str, Any] = {}
    if cell.init:
        extra["init"] = {str(seed): Start(**read_about(file)["init"]) for seed, file in files.items()}
    if further:
        extra["splits"] = {
            split: SplitScores(images=len(own.split(split)), data=own.fingerprint, seeds=by_seed(*others[split]))
            for split, own in further.items()
        }
    record = Record(
        cell=name,
        dataset=cell.dataset,
        images={kind: len(store.split(kind)) for kind in (cell.recipe.train_split, cell.recipe.eval_split)},
        protocols=params.protocol_settings,
        seeds=by_seed(found, measured),
        fingerprint=Inputs(cell=cell.fingerprint, data=store.fingerprint, code=code),
        weights={str(seed): Weights(file=file.name, sha256=file_sha256(file)) for seed, file in files.items()},
        **extra,
        versions=versions(select_device(params.runtime.device)),
    )
    metrics = mean_shares([scores[seed, main_protocol] for seed in files])
    write_counts(places.counts(cell.dataset, name), found)
    write_plots(places.plots(name), store.classes, {key: each.matrix for key, each in found.items()}, scores)
    write(places.metrics(name), as_json(metrics))
    write(places.record(cell.dataset, name), record.text())
    print(describe(store.classes, scores))
    for split, (own, _) in others.items():
        print(f"\non {split}:{describe(store.classes, {key: score(each.matrix) for key, each in own.items()})}")


def open_splits(dataset: str, main: "Store", params: Params, places: Places) -> "dict[str, Store]":
    """The store of each further split of `dataset`, whose own store is `main`.

    Raises DataError for a split that is not prepared, or has other classes.
    """
    from deeplab.store import Store

    found = {}
    for split in params.further(dataset):
        folder = folder_of(split, dataset, params, places)
        if not folder.exists():
            raise DataError(f"{folder}: the split {split!r} is not prepared. Run: dvc repro extend@{dataset}")
        found[split] = store = main if folder == main.folder else Store(folder)
        if store.classes != main.classes:
            raise DataError(f"{folder}: other classes than in {main.folder}. Run: dvc repro -f extend@{dataset}")
    return found


def by_seed(found: Found, measured: Measured) -> dict[str, dict[str, "Scores"]]:
    """The scores of each seed under each protocol, as a record has them."""
    from deeplab.metrics import score
    from pipeline.results.scores import scores_of

    scores: dict[str, dict[str, Scores]] = {}
    for (seed, title), counts in found.items():
        own = scores_of(score(counts.matrix), counts, measured[seed, title])
        scores.setdefault(str(seed), {})[title] = own
    return scores


def measure(
    name: str,
    params: Params,
    store: "Store",
    files: dict[int, Path],
    images: "dict[int, Split]",
    on: str = "",
    figures: Path | None = None,
) -> tuple[Found, Measured]:
    """Predict the `images` of each seed under each protocol, and draw `figures` with the first seed.

    on: the split, for the line of progress.
    """
    from deeplab.counts import gather
    from deeplab.inference import count, predict, predict_each
    from deeplab.measures import MEASURES, watch
    from pipeline.pictures.panels import image_scores, write_figures
    from pipeline.training.device import select_device, set_arithmetic
    from pipeline.training.weights import load_network

    cell, main_protocol = params.cell(name), next(iter(params.protocols))
    device = select_device(params.runtime.device)
    set_arithmetic(cell.train)
    found: Found = {}
    measured: Measured = {}
    for seed, file in files.items():
        for title, protocol in params.protocols.items():
            network = load_network(file, name, cell, len(store.classes), protocol).to(device)
            progress = partial(shown, title=f"{name} seed {seed} {title}{on}")
            wanted = () if on else params.columns  # no table shows those of a further split
            measures = {key: each(len(store.classes)) for key, each in MEASURES.items() if key in wanted}
            confidence = next(filter(None, (each.confidence for each in measures.values())), None)
            seen = predict_each(network, images[seed], cell.inference, protocol, device, progress, confidence)
            matrices = count(watch(seen, measures.values()), len(store.classes))
            found[seed, title] = gather(matrices, [record.id for record in images[seed].records], store.classes)
            measured[seed, title] = measures
            if figures and (seed, title) == (next(iter(files)), main_protocol):
                each_image = image_scores(*found[seed, title].totals())
                segment = partial(predict, network, settings=cell.inference, protocol=protocol, device=device)
                write_figures(figures, store, images[seed], segment, file_sha256(file), each_image)
    return found, measured


def as_json(value: dict[str, Any]) -> str:
    """Strict JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(path: Path, text: str) -> None:
    """Write `text` atomically, into a new folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", help="a key of `grid` in params.yaml")
    run(parser.parse_args().cell)


if __name__ == "__main__":
    run_command(main)

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

from deeplab.config import without_defaults
from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.progress import shown
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.training.provenance import file_sha256, versions

if TYPE_CHECKING:
    from deeplab.counts import Counts
    from deeplab.measures import Measure
    from deeplab.store import Store

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
    files = {seed: places.weights(name) / f"seed{seed}.safetensors" for seed in params.seeds}
    code = check_weights(files.values(), name, cell, store)

    from deeplab.counts import write_counts
    from deeplab.metrics import score
    from deeplab.segmenter import read_about
    from pipeline.results.records import Inputs, Record, Start, Weights
    from pipeline.results.scores import describe, mean_shares, scores_of, write_plots
    from pipeline.training.device import select_device

    found, measured = measure(name, params, store, files, places.figures(name))
    scores = {key: score(each.matrix) for key, each in found.items()}
    main_protocol = next(iter(params.protocols))
    record = Record(
        cell=name,
        dataset=cell.dataset,
        images={kind: len(store.split(kind)) for kind in (cell.recipe.train_split, cell.recipe.val_split)},
        protocols={title: without_defaults(protocol) for title, protocol in params.protocols.items()},
        seeds={
            str(seed): {
                title: scores_of(scores[seed, title], found[seed, title], measured[seed, title])
                for title in params.protocols
            }
            for seed in params.seeds
        },
        fingerprint=Inputs(cell=cell.fingerprint, data=store.fingerprint, code=code),
        weights={str(seed): Weights(file=file.name, sha256=file_sha256(file)) for seed, file in files.items()},
        **(
            {"init": {str(seed): Start(**read_about(file)["init"]) for seed, file in files.items()}}
            if cell.init
            else {}
        ),
        versions=versions(select_device(params.runtime.device)),
    )
    metrics = mean_shares([scores[seed, main_protocol] for seed in params.seeds])
    write_counts(places.counts(cell.dataset, name), found)
    write_plots(places.plots(name), store.classes, {key: each.matrix for key, each in found.items()}, scores)
    write(places.metrics(name), as_json(metrics))
    write(places.record(cell.dataset, name), record.text())
    print(describe(store.classes, scores))


def measure(name: str, params: Params, store: "Store", files: dict[int, Path], figures: Path) -> tuple[Found, Measured]:
    """Predict the validation split with each seed under each protocol, and draw `figures` with the first seed."""
    from deeplab.counts import gather
    from deeplab.inference import count, predict, predict_each
    from deeplab.measures import MEASURES, watch
    from pipeline.pictures.panels import image_scores, write_figures
    from pipeline.training.device import select_device, set_arithmetic
    from pipeline.training.weights import load_network

    cell, main_protocol = params.cell(name), next(iter(params.protocols))
    split = store.split(cell.recipe.val_split)
    device = select_device(params.runtime.device)
    set_arithmetic(cell.train)
    images = [record.id for record in split.records]
    found: Found = {}
    measured: Measured = {}
    for seed, file in files.items():
        network = load_network(file, name, cell, len(store.classes)).to(device)
        for title, protocol in params.protocols.items():
            progress = partial(shown, title=f"{name} seed {seed} {title}")
            measures = {key: kind(len(store.classes)) for key, kind in MEASURES.items() if key in params.columns}
            confidence = next(filter(None, (each.confidence for each in measures.values())), None)
            seen = predict_each(network, split, cell.inference, protocol, device, progress, confidence)
            matrices = count(watch(seen, measures.values()), len(store.classes))
            found[seed, title] = gather(matrices, images, store.classes)
            measured[seed, title] = measures
        if seed == params.seeds[0]:
            each_image = image_scores(*found[seed, main_protocol].totals())
            protocol = params.protocols[main_protocol]
            segment = partial(predict, network, settings=cell.inference, protocol=protocol, device=device)
            write_figures(figures, store, cell.recipe.val_split, segment, file_sha256(file), each_image)
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

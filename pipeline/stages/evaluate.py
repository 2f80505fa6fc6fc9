"""Evaluate a trained cell: every seed under every protocol, into metrics, a record, counts, plots and figures.

The metrics are the few numbers that `dvc metrics` shows, of the first protocol, which fills the tables. The record
holds all scores and what they were measured on. What is written depends on settings, data and weights alone: no time,
host or commit, so that the same inputs give the same bytes.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from deeplab.errors import DataError
from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.progress import shown
from pipeline.settings.params import PARAMS, load_params
from pipeline.training.provenance import file_sha256

if TYPE_CHECKING:
    from torch import nn

    from deeplab.counts import Counts
    from deeplab.metrics import Scores
    from deeplab.store import Store


def run(
    name: str,
    data: Path,
    weights: Path,
    metrics: Path,
    record: Path,
    counts: Path,
    plots: Path,
    figures: Path,
    params_file: Path = PARAMS,
) -> None:
    """Evaluate `weights`/seed*.safetensors of the cell `name` on the store `data`; write the five others.

    Raises FileNotFoundError for weights that are missing, DataError for weights of other settings, data or classes.
    """
    from deeplab.store import Store

    params = load_params(params_file)
    cell = params.cell(name)
    store = Store(data)
    split = store.split(cell.recipe.val_split)
    files = {seed: weights / f"seed{seed}.safetensors" for seed in params.seeds}
    code = check_weights(files.values(), name, cell, store)

    from deeplab.counts import gather, write_counts
    from deeplab.inference import evaluate_each
    from deeplab.metrics import score
    from pipeline.pictures.panels import image_scores, write_figures
    from pipeline.results.scores import write_plots
    from pipeline.training.device import select_device, set_arithmetic

    main_protocol = next(iter(params.protocols))
    device = select_device(params.runtime.device)
    set_arithmetic(cell.train)
    images = [record.id for record in split.records]
    found: dict[tuple[int, str], Counts] = {}
    for seed, file in files.items():
        network = load_network(file, name, cell, len(store.classes)).to(device)
        for title, protocol in params.protocols.items():
            progress = partial(shown, title=f"{name} seed {seed} {title}")
            matrices = evaluate_each(network, split, len(store.classes), cell.inference, protocol, device, progress)
            found[seed, title] = gather(matrices, images, store.classes)
        if seed == params.seeds[0]:
            each_image = image_scores(*found[seed, main_protocol].totals())
            protocol = params.protocols[main_protocol]
            write_figures(figures, network, store, cell, protocol, device, file_sha256(file), each_image)
    write_counts(counts, found)
    scores = {key: score(each.matrix) for key, each in found.items()}
    write_plots(plots, store.classes, {key: each.matrix for key, each in found.items()}, scores)
    write_json(metrics, mean_shares([scores[seed, main_protocol] for seed in params.seeds]))
    result = {
        "cell": name,
        "dataset": cell.dataset,
        "images": {kind: len(store.split(kind)) for kind in (cell.recipe.train_split, cell.recipe.val_split)},
        "protocols": {title: asdict(protocol) for title, protocol in params.protocols.items()},
        "seeds": {
            str(seed): {
                title: mean_shares([scores[seed, title]]) | ends(found[seed, title]) for title in params.protocols
            }
            for seed in params.seeds
        },
        "fingerprint": {"cell": cell.fingerprint, "data": store.fingerprint, "code": code},
        "weights": {str(seed): {"file": file.name, "sha256": file_sha256(file)} for seed, file in files.items()},
    }
    write_json(record, result)
    print_scores(store.classes, scores)


def check_weights(files: Iterable[Path], name: str, cell: Cell, store: "Store") -> str:
    """Hold what each file says of itself against today's settings and data; the fingerprint of its code."""
    from safetensors import SafetensorError, safe_open

    remedy = f"Run: dvc repro train@{name}"
    codes: set[str] = set()
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such weights. {remedy}")
        try:
            with safe_open(file, framework="numpy") as content:
                said: dict[str, Any] = json.loads((content.metadata() or {}).get("about", "{}"))
        except (SafetensorError, ValueError) as error:
            raise DataError(f"{file}: damaged ({error}). {remedy}") from None
        expected = {
            "other settings": ("cell", cell.fingerprint),
            "other data": ("data", store.fingerprint),
            "other classes": ("classes", list(store.classes)),
        }
        if differ := [what for what, (key, value) in expected.items() if said.get(key) != value]:
            raise DataError(f"{file}: trained with {' and '.join(differ)} than there are now. {remedy}")
        codes.add(said.get("code", ""))
    if len(codes) > 1:
        raise DataError(f"{file.parent}: the seeds were trained by different versions of the code. {remedy}")
    return codes.pop()


def load_network(file: Path, name: str, cell: Cell, classes: int) -> "nn.Module":
    """The network of `cell` with the weights in `file`, ready to evaluate."""
    from safetensors.torch import load_file

    from deeplab.model import DeepLabV3

    network = DeepLabV3(replace(cell.model, pretrained=False), classes)
    try:
        network.load_state_dict(load_file(file))
    except RuntimeError:
        raise DataError(f"{file}: does not fit the network as it is built now. Run: dvc repro train@{name}") from None
    return network.eval()


def mean_shares(scores: list["Scores"]) -> dict[str, Any]:
    """The scores of one run, or the means of several, as they stand in the metrics file."""
    count = len(scores)
    return {
        "mIoU": round(sum(each.mean_iou for each in scores) / count, 6),
        "pixel_accuracy": round(sum(each.pixel_accuracy for each in scores) / count, 6),
        "mean_accuracy": round(sum(each.mean_accuracy for each in scores) / count, 6),
        "classes_evaluated": round(sum(each.classes_evaluated for each in scores) / count),
    }


def ends(counts: "Counts") -> dict[str, float]:
    """Between what the mIoU lies in 95 of 100 such sets of images; nothing when there is one image only."""
    from deeplab.intervals import interval

    if len(counts.images) < 2:
        return {}
    found = interval([counts])
    return {"mIoU_low": round(found.low, 6), "mIoU_high": round(found.high, 6)}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Strict JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_scores(classes: tuple[str, ...], scores: dict[tuple[int, str], "Scores"]) -> None:
    """The classes of each seed and protocol, and below them what they come to."""
    width = max(len(name) for name in (*classes, "class"))
    for (seed, title), each in scores.items():
        print(f"\nseed {seed}, {title}\n{'class':{width}}   IoU %  accuracy %")
        for name, iou, accuracy in zip(classes, each.iou, each.accuracy, strict=True):
            print(f"{name:{width}}  {percent(iou):>6}  {percent(accuracy):>10}")
        print(
            f"mIoU {percent(each.mean_iou)} %, pixel accuracy {percent(each.pixel_accuracy)} %, "
            f"mean accuracy {percent(each.mean_accuracy)} %, {each.classes_evaluated} of {len(classes)} classes"
        )


def percent(share: float) -> str:
    """Two digits; a dash for nan."""
    return "-" if share != share else f"{100 * share:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", help="a key of `grid` in params.yaml")
    parser.add_argument("--data", type=Path, required=True, help="the prepared store")
    parser.add_argument("--weights", type=Path, required=True, help="the folder of seed*.safetensors")
    parser.add_argument("--metrics", type=Path, required=True, help="the JSON file for the scores")
    parser.add_argument("--record", type=Path, required=True, help="the JSON file for the scores and their provenance")
    parser.add_argument("--counts", type=Path, required=True, help="where the confusion counts of each image go")
    parser.add_argument("--plots", type=Path, required=True, help="where classes.csv and confusion.csv go")
    parser.add_argument("--figures", type=Path, required=True, help="where the pictures go")
    arguments = parser.parse_args()
    run(
        arguments.cell,
        arguments.data,
        arguments.weights,
        arguments.metrics,
        arguments.record,
        arguments.counts,
        arguments.plots,
        arguments.figures,
    )


if __name__ == "__main__":
    run_command(main)

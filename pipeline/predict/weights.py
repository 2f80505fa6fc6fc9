"""Find the weights that a user names."""

import json
from pathlib import Path

from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.files import readable
from pipeline.settings.links import remedy
from pipeline.settings.params import NAME, load_params
from pipeline.settings.places import Places
from pipeline.training.provenance import file_sha256


def is_cell(name: str) -> bool:
    """Whether `name` is the name of a cell; a path that exists comes first."""
    return NAME.fullmatch(name) is not None and not Path(name).exists()


def find_weights(name: str, seed: int, places: Places) -> Path:
    """The weights file or folder that `name` means: a path, or a cell whose weights are those of its record.

    Raises ParamsError for a seed that the cell does not have, DataError when there are no such weights, or when
    `evaluate` measured other ones.
    """
    if Path(name).exists():
        return Path(name)
    if not is_cell(name):
        raise DataError(f"{name}: no such weights file, and not the name of a cell")
    params = load_params(places.params)
    dataset = params.cell(name).dataset
    file, runs = places.weights(name) / f"seed{seed}.safetensors", params.runs[name]
    if not file.exists() and seed not in runs:
        raise ParamsError(f"--seed: got {seed}, expected one of those of {name}: {', '.join(map(str, runs))}")
    if not file.exists():
        raise DataError(f"{file}: no such weights. {remedy(name, dataset, places)}")
    require_evaluated(file, places.record(dataset, name), params.stage("evaluate", name))
    return file


def require_evaluated(file: Path, record: Path, stage: str) -> None:
    """DataError when `record` was made from other weights: the published number and card are not those of `file`."""
    if not record.exists():
        return
    with readable(record, f"Run: dvc repro -f {stage}"):
        evaluated = json.loads(record.read_bytes())["weights"].values()
        known = {weights["file"]: weights["sha256"] for weights in evaluated}
    if file.name in known and known[file.name] != file_sha256(file):
        raise DataError(
            f"{file}: not the weights that {record} describes (other SHA-256): damaged, or trained again. "
            f"Run: dvc repro {stage}, or name the file itself to use it as it is."
        )

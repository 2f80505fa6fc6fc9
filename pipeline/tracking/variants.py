"""Variants: results of a copy of the project that DVC made for an experiment (`dvc exp run --queue` or `--temp`).

The runs of a variant are recorded beside the others. What belongs to the table of the recipe stays with the project.
"""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from deeplab.config import Cell
from pipeline.errors import ParamsError
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.training.facts import differences
from pipeline.training.provenance import git

COPIES = ".dvc/tmp/exps"  # where DVC makes them


def is_variant(places: Places) -> bool:
    """Whether the project is DVC's copy for an experiment."""
    return f"/{COPIES}/" in f"{places.root.resolve().as_posix()}/"


def changes_of(name: str, cell: Cell, places: Places) -> str:
    """What a variant changes in the cell `name` of the commit that it began with, such as `recipe.lr (0.1 -> 0.2)`.

    "" outside of a variant, and where git cannot tell.
    """
    if not is_variant(places):
        return ""
    try:
        with TemporaryDirectory() as folder:
            before = Path(folder) / places.params.name
            before.write_text(git("show", f"HEAD:./{places.params.name}", folder=places.root), encoding="utf-8")
            old = load_params(before).cells.get(name)
    except (OSError, ParamsError):
        return ""
    return ", ".join(differences(asdict(old) if old else {}, asdict(cell)))

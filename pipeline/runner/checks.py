"""Mistakes that only a stage would find, or nobody: checked before the first stage runs and after the last one."""

from collections.abc import Iterable

from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.results.readme import fill, stale
from pipeline.runner.graph import shorten
from pipeline.settings.messages import unknown
from pipeline.settings.params import PARAMS, Params
from pipeline.settings.places import Places
from pipeline.settings.stage_names import kind_and_name
from pipeline.training.provenance import uncommitted

# The names of the published recipes. Only for another one torch is imported, which takes seconds.
USUAL_LOSSES = {"cross_entropy"}
USUAL_TRANSFORMS = {"photometric"}
USUAL_BACKBONES = {"resnet18", "resnet34", "resnet50", "resnet50c", "resnet101", "resnet101c"}


def check_names(params: Params) -> None:
    """Raise ParamsError, with the nearest name, for an unknown format, loss, transform or backbone."""
    from pipeline.data.formats import FORMATS

    for name, dataset in params.datasets.items():
        if dataset.format not in FORMATS:
            raise ParamsError(f"{PARAMS}: datasets.{name}.format: {unknown(dataset.format, FORMATS)}")
    for name, cell in params.cells.items():
        for loss in cell.train.losses.keys() - USUAL_LOSSES:
            from deeplab.losses import LOSSES

            if loss not in LOSSES:
                raise ParamsError(f"{PARAMS}: cell {name}: train.loss: {unknown(loss, LOSSES)}")
        for transform in set(cell.augment.transforms) - USUAL_TRANSFORMS:
            from deeplab.augmentations import AUGMENTATIONS

            if transform not in AUGMENTATIONS:
                raise ParamsError(f"{PARAMS}: cell {name}: augment.transforms: {unknown(transform, AUGMENTATIONS)}")
        if cell.model.backbone not in USUAL_BACKBONES:
            import timm

            from deeplab.backbone import BACKBONES

            backbone = cell.model.backbone
            if not timm.is_model(BACKBONES.get(backbone, backbone)):
                names = [*BACKBONES, *timm.list_models()]
                raise ParamsError(f"{PARAMS}: grid.{name}.backbone: {unknown(backbone, names)}")


def check_markers(stages: Iterable[str], places: Places = Places()) -> None:
    """Raise DataError when one of `stages` could not put its table into the README."""
    for kind, dataset in map(kind_and_name, stages):
        if kind == "readme" and places.readme.exists():
            fill(places.readme.read_bytes(), dataset, b"", places.readme)


def uncommitted_line(stages: Iterable[str]) -> str:
    """What to know before a training from files that are not committed; nothing otherwise."""
    if not any(kind_and_name(stage)[0] == "train" for stage in stages):
        return ""
    try:
        changed = uncommitted()
    except ParamsError:  # outside of git the record says that no commit is known
        return ""
    if not changed:
        return ""
    return f"{shorten(changed)}: not committed, so the trainings will be recorded as dirty. Commit first to avoid that."


def check_readme(stages: Iterable[str], places: Places = Places()) -> None:
    """Raise DataError when the README does not show the tables that `stages` put there. DVC does not watch it."""
    for stage in stages:
        kind, dataset = kind_and_name(stage)
        exist = kind == "readme" and places.table(dataset).exists() and places.readme.exists()
        if exist and (message := stale(dataset, places)):
            raise DataError(message)

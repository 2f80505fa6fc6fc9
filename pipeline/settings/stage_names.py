"""The names of DVC's stages: `train@cell` in dvc.yaml, `examples/dvc.yaml:train@cell` in another file."""

from pathlib import Path


def short(stage: str) -> str:
    """The name of `stage` in its file."""
    return stage.rpartition(":")[2]


def kind_and_name(stage: str) -> tuple[str, str]:
    """What a stage does, and the cell or data set that it does it for; that is empty where it is for all."""
    kind, _, name = short(stage).partition("@")
    return kind, name


def lock_of(stage: str) -> Path:
    """The file in which DVC writes down the runs of `stage`."""
    return Path(stage.rpartition(":")[0] or "dvc.yaml").with_suffix(".lock")

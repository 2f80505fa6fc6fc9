"""The names of stages: `train@CELL`, `prepare@DATASET`, `report`."""


def kind_and_name(stage: str) -> tuple[str, str]:
    """The stage of dvc.yaml, and the cell or data set that it runs for; that is empty for a stage of all."""
    kind, _, name = stage.partition("@")
    return kind, name

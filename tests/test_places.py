"""The paths in the code are those of dvc.yaml."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.settings.places import Places

STAGES = YAML(typ="safe").load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
HERE, DATASET, CELL = Places(), "${key}", "${key}"
OF_CELL = "${item.dataset}"
OUTS = {
    "check": {HERE.code},
    "download": {HERE.download(DATASET)},
    "prepare": {
        HERE.manifest(DATASET),
        *(HERE.store(DATASET) / name for name in ("images.bin", "image_files.txt", "masks.bin", "sheet.png")),
        *(HERE.data_card(DATASET) / name for name in ("card.json", "card.md")),
    },
    "extend": {HERE.splits(DATASET), HERE.split_cards(DATASET)},
    "train": {HERE.weights(CELL), HERE.facts(CELL), HERE.history(CELL)},
    "evaluate": {
        HERE.record(OF_CELL, CELL),
        HERE.counts(OF_CELL, CELL),
        HERE.metrics(CELL),
        HERE.figures(CELL),
        *(HERE.plots(CELL) / name for name in ("classes.csv", "confusion.csv")),
    },
    "tables": {HERE.table(DATASET), HERE.sheet(DATASET), HERE.latex(DATASET), HERE.cards(DATASET)},
    "compare": {HERE.statistics(DATASET)},
    "readme": set(),
    "report": {HERE.page},
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_outputs_of_a_stage_are_where_the_code_writes_them(stage):
    body = STAGES[stage].get("do", STAGES[stage])
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in body.get(kind, [])]
    paths = {Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries}
    assert paths == OUTS[stage]


def test_the_inputs_that_no_stage_writes_are_where_the_code_reads_them():
    assert {Path(path) for path in STAGES["check"]["deps"][2:]} == {HERE.params, HERE.equivalent_code}
    assert HERE.reference.as_posix() in STAGES["report"]["deps"]


def test_a_project_can_lie_anywhere(tmp_path):
    assert Places(tmp_path).record("voc", "cell") == tmp_path / "reports/records/voc/cell.json"


def test_the_intervals_and_a_plot_of_each_data_set_come_with_its_table():
    """Whatever params.yaml calls it, and with a single cell, too."""
    (table,) = STAGES["tables"]["do"]["plots"]
    assert set(table) == {HERE.sheet(DATASET).as_posix()}
    assert HERE.statistics(DATASET).as_posix() in STAGES["readme"]["do"]["deps"]
    assert {STAGES[stage]["foreach"] for stage in ("tables", "compare", "readme")} == {"${datasets}"}

"""The verdict on a difference from a published number, and when there is none."""

from dataclasses import replace

import pandas as pd
import pytest

from pipeline.page.verdicts import COLUMNS, compare, elsewhere, read_reference
from pipeline.settings.params import load_params
from tests.fake_grid import ROOT

PARAMS = load_params(ROOT / "params.yaml")
REFERENCE = read_reference(ROOT / "reports/reference.csv")


def compared(miou, dataset="voc", params=PARAMS, reference=REFERENCE, change=lambda cell: cell, **changed):
    """A row of ResNet50 at output stride 8, measured as published but for what is `changed` in it or its settings."""
    cell = change(params.cells[f"{dataset}_resnet50_os8"])
    images = params.datasets[dataset].images
    row = {
        "cell": f"{dataset}_resnet50_os8", "backbone": "resnet50c", "output_stride": "8", "mIoU": miou, "seeds": "0",
        "train_images": str(float(images[cell.recipe.train_split])), "eval_images": str(float(images[cell.recipe.val_split])),
        **changed,
    }  # fmt: skip
    return compare(row, cell, reference, params)


def one_epoch_more(cell):
    return replace(cell, recipe=replace(cell.recipe, epochs=cell.recipe.epochs + 1))


def from_scratch(cell):
    return replace(cell, model=replace(cell.model, pretrained=False))


@pytest.mark.parametrize(
    ("dataset", "miou", "difference", "verdict"),
    [
        ("voc", 0.7772, 0.0, "reproduced"),
        ("voc", 0.7842, 0.7, "reproduced"),
        ("voc", 0.7844, 0.72, "above"),
        ("voc", 0.7702, -0.7, "reproduced"),
        ("voc", 0.7700, -0.72, "below"),
        ("cityscapes", 0.8035, 0.73, "above"),
        ("ade20k", 0.4240, -0.79, "reproduced"),
        ("ade20k", 0.4238, -0.81, "below"),
    ],
)
def test_a_number_within_the_tolerance_of_its_data_set_is_reproduced(dataset, miou, difference, verdict):
    found = compared(str(miou), dataset)
    assert found.difference == pytest.approx(difference, abs=1e-9)
    assert (found.verdict, found.reason) == (verdict, "")


def test_a_cell_that_is_not_measured_has_no_difference():
    found = compared("")
    assert (found.published, found.difference, found.verdict) == (77.72, None, "not measured")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"train_images": "10581"}, "a subset of the images"),
        ({"eval_images": "48.0"}, "a subset of the images"),
        ({"eval_images": ""}, "a subset of the images"),
        ({"departs": "batch_size 8"}, "departs from the recipe: batch_size 8"),
        ({"change": one_epoch_more}, "another schedule than 0.01/poly/16/60"),
        ({"change": from_scratch}, "no ImageNet weights"),
        ({"seeds": ""}, "not every seed"),
    ],
)
def test_what_was_not_measured_as_published_is_not_compared(changed, reason):
    found = compared("0.7772", **changed)
    assert (found.verdict, found.reason) == ("not compared", reason)


def test_another_protocol_than_one_scale_is_not_compared(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("single_scale: {scales: [1.0], flip: false", "flipped: {scales: [1.0], flip: true"))
    assert compared("0.7772", params=load_params(path)).reason == "not one scale without flip"


def test_a_cell_without_a_published_number_has_no_verdict():
    assert compared("0.5", backbone="resnet18").verdict == ""
    assert compared("0.5", reference=pd.DataFrame(columns=list(COLUMNS))).published is None


def test_other_sources_show_their_longest_schedule_at_one_scale():
    row = {"backbone": "resnet101c", "output_stride": "8"}
    assert elsewhere(row, REFERENCE, "voc") == {"mmsegmentation 1.2.2": 77.92, "paper": 78.51, "PaddleSeg": 80.62}


def test_a_reference_without_a_column_is_refused(tmp_path):
    (tmp_path / "reference.csv").write_text("dataset,backbone,output_stride,source,protocol,mIoU\n")
    with pytest.raises(ValueError, match="no column tolerance"):
        read_reference(tmp_path / "reference.csv")

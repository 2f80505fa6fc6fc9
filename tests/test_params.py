from pathlib import Path

import pytest
import ruamel.yaml

from pipeline.errors import ParamsError
from pipeline.settings.params import load_params
from tests.faults import tried

PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def edited(tmp_path):
    """Load params.yaml with one piece of its text replaced."""

    def load(old, new):
        text = PARAMS.read_text(encoding="utf-8")
        assert text.count(old) >= 1
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return load_params(path)

    return load


def test_the_default_grid_is_the_published_one_and_the_demo():
    params = load_params(PARAMS)
    names = [name for name in params.cells if not name.startswith("shapes_")]
    assert names == [
        f"{dataset}_{backbone}_os{stride}"
        for dataset in ("voc", "ade20k", "cityscapes")
        for backbone in ("resnet50", "resnet101")
        for stride in (8, 16)
    ]
    assert len(params.cells) == 16
    for name in names:
        cell = params.cells[name]
        assert name == f"{cell.dataset}_{cell.model.backbone.removesuffix('c')}_os{cell.model.output_stride}"
        assert cell.model.pretrained
        assert (cell.recipe.lr, cell.recipe.policy) == (0.01, "poly")


@pytest.mark.parametrize(("dataset", "crop", "resize", "batch", "epochs", "splits"), [
    ("voc", (512, 512), (2048, 512), 16, 60, ("trainaug", "val")),
    ("ade20k", (512, 512), (2048, 512), 16, 130, ("train", "val")),
    ("cityscapes", (512, 1024), (2048, 1024), 8, 220, ("train", "val")),
])  # fmt: skip
def test_the_default_recipes_are_the_published_ones(dataset, crop, resize, batch, epochs, splits):
    recipe = load_params(PARAMS).cells[f"{dataset}_resnet50_os8"].recipe
    assert (recipe.crop, recipe.resize, recipe.batch_size, recipe.epochs) == (crop, resize, batch, epochs)
    assert (recipe.train_split, recipe.val_split) == splits


def test_a_recipe_overrides_the_shared_sections_and_a_row_overrides_both(edited):
    params = edited(
        "shapes_resnet18_os8: {dataset: shapes,",
        "shapes_resnet18_os8: {model: {aspp_channels: 24, dropout: 0.2}, recipe: {epochs: 1}, dataset: shapes,",
    )
    row, other, voc = (
        params.cells[name] for name in ("shapes_resnet18_os8", "shapes_resnet18_os16", "voc_resnet50_os8")
    )
    assert (row.model.aspp_channels, other.model.aspp_channels, voc.model.aspp_channels) == (24, 32, 512)
    assert (row.model.dropout, other.model.dropout) == (0.2, 0.1)
    assert row.recipe.epochs == 1 != other.recipe.epochs
    assert row.fingerprint != other.fingerprint


def test_dvc_reads_yaml_in_c():
    """Once per stage: in Python, 200 cells take a minute."""
    assert ruamel.yaml.__with_libyaml__


def test_numbers_are_read_as_yaml_1_2_the_way_dvc_reads_them(edited):
    assert edited("weight_decay: 5.0e-4", "weight_decay: 1e-2").cells["voc_resnet50_os8"].train.weight_decay == 0.01


def test_runtime_settings_are_no_part_of_a_cells_fingerprint(edited):
    before = load_params(PARAMS).cells["voc_resnet50_os8"].fingerprint
    assert edited("workers: 2", "workers: 7").cells["voc_resnet50_os8"].fingerprint == before
    assert edited("precision: fp32", "precision: bf16").cells["voc_resnet50_os8"].fingerprint != before


@pytest.mark.parametrize(("old", "new", "message"), [
    ("momentum: 0.9", "momentun: 0.9", "params.yaml: train: unknown name 'momentun'; did you mean 'momentum'?"),
    ("workers: 2", "worker: 2", "params.yaml: runtime: unknown name 'worker'; did you mean 'workers'?"),
    ("format: voc", "formt: voc", "params.yaml: datasets.voc: unknown name 'formt'; did you mean 'format'?"),
    ("\ngrid:", "\ngird:", "params.yaml: unknown name 'gird'; did you mean 'grid'?"),
    ("aspp_channels: 32", "aspp_chanels: 32", "recipes.shapes.model: unknown name 'aspp_chanels'; did you mean"),
    ("batch_size: 8, epochs: 220", "batch: 8, epochs: 220", "recipes.cityscapes: unknown name 'batch'; did you mean"),
    ("dataset: voc,", "dataset: vok,", "grid.voc_resnet50_os8.dataset: unknown name 'vok'; did you mean 'voc'?"),
    ("epochs: 220", "epochs: '220'", "recipes.cityscapes.epochs: got '220', expected a valid integer"),
    ("epochs: 220", "epochs: true", "recipes.cityscapes.epochs: got True, expected a valid integer"),
    ("epochs: 220", "epochs: 0", "recipes.cityscapes.epochs: got 0, expected greater than 0"),
    ("lr: 0.01, policy: poly, batch_size: 8, epochs: 220", "lr: .nan, policy: poly, batch_size: 8, epochs: 220", "recipes.cityscapes.lr: got nan"),
    ("policy: poly, batch_size: 8, epochs: 220", "policy: step, batch_size: 8, epochs: 220", "recipes.cityscapes.policy: got 'step', expected 'poly'"),
    ("tf32: false", "tf32: no", "train.tf32: got 'no', expected a valid boolean"),
    ("precision: fp32", "precision: fp8", "train.precision: got 'fp8', expected 'fp32', 'bf16' or 'fp16'"),
    ("backbone: resnet50c, output_stride: 8}", "backbone: resnet50c, output_stride: 12}",
     "params.yaml: grid.voc_resnet50_os8.output_stride: got 12, expected 8 or 16"),
    ("batch_size: 8, epochs: 220", "batch_size: 1, epochs: 220", "recipes.cityscapes.batch_size: got 1, expected 2 or more"),
    ("  dropout: 0.1", "  dropout: 0.1\n  dropout: 0.2", 'found duplicate key "dropout"'),
    ("  dropout: 0.1", "", "params.yaml: model.dropout: missing. Add it; it has no default."),
    ("seeds: [0]", "seeds: [0, 0]", "params.yaml: seeds: got [0, 0], expected each seed once"),
    ("seeds: [0]", "seeds: []", "params.yaml: seeds: got [], expected at least 1 item"),
    ("scale: [0.5, 2.0]", "scale: [2.0, 0.5]", "params.yaml: augment.scale: got [2.0, 0.5], expected [low, high]"),
    ("window: null, stride: null}\n\n# More", "window: [9, 9], stride: null}\n\n# More", "protocols.single_scale.window"),
    ("  shapes_resnet18_os8:", "  shapes.r18:", "the name 'shapes.r18': expected lower-case letters, digits and _ only"),
    ("  shapes_resnet18_os8:", "  ../../r18:", "the name '../../r18': expected lower-case letters, digits and _ only"),
    ("  shapes_resnet18_os8:", "  'a; touch b':", "the name 'a; touch b': expected lower-case letters, digits and _ only"),
    ("size: 1999639040", "size: '2 GB'", "params.yaml: datasets.voc.archives.0.size: got '2 GB', expected a valid integer"),
    ("max_unpacked: 2000000000", "max_unpackd: 1", "datasets.voc.archives.0: unknown name 'max_unpackd'; did you mean 'max_unpacked'?"),
    ('- "http://host', '- "ftp://host', "archives.0.urls: got 'ftp://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar', expected an address"),
    ("md5: 82b4d8", "md5: 82B4D8", "datasets.voc.archives.1.md5: got '82B4D87ceb2ed10f6038a1cba92111cb', expected 32 digits 0-9 a-f"),
    ("md5: 82b4d87ceb2ed10f6038a1cba92111cb", "", "archives.1.name: got 'benchmark.tgz' without a checksum, expected md5, sha1 or"),
    ("name: benchmark.tgz", "name: ../benchmark.tgz", "archives.1.name: got '../benchmark.tgz', expected a file name that ends in .tar"),
    ("folders: [VOCdevkit]", "folders: []", "datasets.voc.archives.0.folders: got [], expected at least 1 item"),
    ("seeds: [0]", "seeds: [0", "params.yaml:"),
    ('["http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"]',
     '[http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip]',
     "params.yaml:73: found unexpected ':'. Put what stands before it in quotes"),
])  # fmt: skip
@tried.SETTINGS
def test_a_mistake_is_answered_with_its_place_and_the_remedy(edited, old, new, message):
    with pytest.raises(ParamsError) as caught:
        edited(old, new)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@tried.SETTINGS
def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ParamsError, match="params.yaml: No such file or directory. Run the command from the folder"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"grid", b"\xff\xfe\x00", b"a: &a [*a]", b"{" * 600])
@tried.SETTINGS
def test_a_file_that_is_no_settings_at_all_is_refused(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        load_params(path)


@pytest.mark.parametrize("key", ["2024-01-01", "? [a, b]\n  "])
@tried.SETTINGS
def test_a_key_that_yaml_takes_for_a_date_or_a_list_is_one_line(edited, key):
    with pytest.raises(ParamsError, match=r"params\.yaml: a key is a date or a list for YAML. Write it in quotes."):
        edited("  shapes_resnet18_os8:", f"  {key}:")


@tried.SETTINGS
def test_an_unknown_cell_is_answered_with_the_nearest_one():
    with pytest.raises(ParamsError, match="unknown name 'voc_resnet5_os8'; did you mean 'voc_resnet50_os8'"):
        load_params(PARAMS).cell("voc_resnet5_os8")


@pytest.mark.parametrize(("row", "name"), [
    ("train: {loss: focal, tf32: true}, recipe: {lr: 2.0e-2}", "lr=0.02, loss=focal, tf32=true"),
    ("augment: {scale: [0.5, 1], transforms: []}", "scale=0.5/1, transforms=none"),
    ("recipe: {lr: 0.05}, model: {pretrained: true}", ""),  # as the recipe has it; and what every name says
])  # fmt: skip
def test_what_a_row_overrides_is_its_name(edited, row, name):
    params = edited("shapes_resnet18_os8: {dataset: shapes,", f"shapes_resnet18_os8: {{{row}, dataset: shapes,")
    assert params.overrides.pop("shapes_resnet18_os8") == name
    assert set(params.overrides.values()) == {""}

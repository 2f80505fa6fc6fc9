"""`grid new`: what it finds in folders as other people have them, and the project that it writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from deeplab.errors import DataError
from pipeline import cli
from pipeline.cluster.snapshot import committed, snapshot
from pipeline.data.classes import read_list
from pipeline.data.formats import folder
from pipeline.data.look import describe
from pipeline.data.pairing import Pair, find, propose
from pipeline.errors import ParamsError
from pipeline.runner.graph import outdated
from pipeline.runner.run import read_fresh_stages
from pipeline.settings import scaffold
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

ROOT = Path(__file__).parents[1]


def write(path, values=(0, 1, 2), mode="L", palette=None, size=(24, 36)):
    """A mask with a stripe of each of `values`; with mode RGB the values are colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.array(values, np.uint8)[np.arange(size[1]) * len(values) // size[1]]
    picture = Image.fromarray(np.broadcast_to(stripes, (size[0], *stripes.shape)).copy())
    if palette:
        picture = picture.convert("P") if picture.mode != "L" else picture
        picture.putpalette(palette)
    picture.save(path)


def photo(path, size=(24, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), np.uint8)).save(path)


def folders(root, names, mask="{}.png", **how):
    """Images with `names` in `root`/photos and masks in `root`/labels."""
    for name in names:
        photo(root / f"photos/{name}.jpg")
        write(root / "labels" / mask.format(name), **how)
    return root / "photos", root / "labels"


def look(images, masks, classes=None):
    return describe(images, masks, (), classes)


def pairs_of(found):
    return {split: [(str(image), str(mask)) for image, mask in pairs] for split, pairs in found.splits.items()}


# --- Which mask belongs to which image


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a_001", "a_001"),
        ("a_001", "a_001_mask"),
        ("img_001", "mask_001"),
        ("aachen_000001_leftImg8bit", "aachen_000001_gtFine_labelIds"),
        ("0016E5_001", "0016E5_001_L"),
        ("a001.jpg", "a001.jpg.mask"),
    ],
)
def test_words_that_only_masks_have_are_no_part_of_a_name(tmp_path, image, mask):
    for number in ("001", "002", "003"):
        photo(tmp_path / f"photos/{image.replace('001', number)}.jpg")
        write(tmp_path / f"labels/{mask.replace('001', number)}.png")
    found = find(tmp_path / "photos", tmp_path / "labels")
    pairs = sorted(pair for each in found.splits.values() for pair in each)
    assert [(p.image.stem, p.mask.stem) for p in pairs] == [
        (image.replace("001", n), mask.replace("001", n)) for n in ("001", "002", "003")
    ]


def test_links_are_followed_and_litter_is_left_out(tmp_path):
    images, masks = folders(tmp_path, ["a1", "b1", "c1"])
    images.rename(tmp_path / "elsewhere")
    (images / "@eaDir").mkdir(parents=True)
    photo(images / "@eaDir/a1.jpg")
    (images / "more").symlink_to("../elsewhere")
    found = find(images, masks)
    assert sorted(str(pair.image) for each in found.splits.values() for pair in each) == [
        f"more/{name}1.jpg" for name in "abc"
    ]


def test_equal_names_in_several_folders_are_told_apart_by_the_folders(tmp_path):
    for split in ("train", "valid"):
        for name in ("1", "2"):
            photo(tmp_path / f"images/{split}/{name}.jpg")
            write(tmp_path / f"x/{split}_labels/{name}.png")
    found = find(tmp_path / "images", tmp_path / "x")
    assert pairs_of(found)["val"] == [("valid/1.jpg", "valid_labels/1.png"), ("valid/2.jpg", "valid_labels/2.png")]


def test_files_without_a_partner_are_left_out_and_named(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2", "a3"])
    photo(images / "extra9.jpg")
    assert "1 files without a partner are left out, such as " + str(images / "extra9.jpg") in look(images, masks).report


# --- Which pairs are for training


def test_a_proposed_split_keeps_groups_of_one_prefix_together_and_is_the_same_again():
    pairs = [Pair(Path(f"{film}_{n:03}.jpg"), Path()) for film in "abcdefgh" for n in range(10)]
    splits, note = propose(pairs)
    films = {split: {pair.image.name[0] for pair in each} for split, each in splits.items()}
    assert not films["train"] & films["val"]
    assert len(splits["val"]) == 10
    assert note.startswith("proposed: 8 groups")
    assert propose(list(reversed(pairs)))[0] == splits


def test_changed_copies_of_an_image_stay_together():
    pairs = [Pair(Path(f"p{n}_jpg.rf.{'0a'[copy]}{n}{copy}f.jpg"), Path()) for n in range(9) for copy in range(2)]
    # all names begin alike, so the images are drawn one by one, and the copies of one must not be
    splits, _ = propose(pairs)
    names = {split: {pair.image.name.partition("_")[0] for pair in each} for split, each in splits.items()}
    assert not names["train"] & names["val"]
    with pytest.raises(DataError, match="all images are copies of one"):
        propose(pairs[:2])


def test_lists_of_names_beside_the_images_are_the_split(tmp_path):
    images, masks = folders(tmp_path / "set", ["a1", "a2", "a3"])
    (tmp_path / "set/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "set/ImageSets/Segmentation/train.txt").write_text("a1\na3\n")
    (tmp_path / "set/ImageSets/Segmentation/val.txt").write_text("a2\n")
    assert {split: len(pairs) for split, pairs in look(images, masks).splits.items()} == {"train": 2, "val": 1}


# --- What masks mean


CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nball:250,50,83::\ncup:51,221,255::\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("labelmap.txt", CVAT, [(None, "background", (0, 0, 0)), (None, "ball", (250, 50, 83)), (None, "cup", (51, 221, 255))]),
        ("_classes.csv", "Pixel Value, Class\n0, unlabeled\n1, brick wall\n", [(0, "unlabeled", None), (1, "brick wall", None)]),
        ("class_names.txt", "sky\nbrick wall\n\ncat\n", [(None, "sky", None), (None, "brick wall", None), (None, "cat", None)]),
        ("class_dict.csv", "name,r,g,b\nAnimal,64,128,64\n", [(None, "Animal", (64, 128, 64))]),
        ("label_colors.txt", "64 128 64\tAnimal\n", [(None, "Animal", (64, 128, 64))]),
        ("classes.txt", "0 Sky 1 2 3\n11 Unlabelled (ignore)\n0 Sky\n", [(0, "Sky", (1, 2, 3)), (11, "Unlabelled (ignore)", None), (0, "Sky 2", None)]),
    ],
)  # fmt: skip
def test_a_list_of_classes_is_read_in_the_forms_of_other_tools(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert read_list(tmp_path / name) == expected


def test_labels_that_occur_are_counted_and_255_looks_like_no_label(tmp_path):
    source = look(*folders(tmp_path, ["a1", "a2"], values=(0, 3, 3, 255)))
    assert (source.classes, source.ignore, source.masks_are) == (
        ["0 class_0", "3 class_3", "255 ignore"],
        [255],
        "labels",
    )
    assert "    3  class_3                   50.0%       2\n" in source.report
    assert "  255  ignore                    25.0%       2  looks like `no label`" in source.report


def test_masks_may_be_arrays_of_numpy(tmp_path):
    images, _ = folders(tmp_path, ["a1", "a2"])
    for name in ("a1", "a2"):
        (tmp_path / "arrays").mkdir(exist_ok=True)
        np.save(tmp_path / f"arrays/{name}.npy", np.tile(np.arange(36) // 18, (24, 1)))
    for masks in (tmp_path / "arrays", images):  # of their own, or beside the images
        source = look(images, masks)
        assert source.classes == ["0 background", "1 foreground"]
        assert sorted(pair.mask.name for pairs in source.splits.values() for pair in pairs) == ["a1.npy", "a2.npy"]
        for path in (tmp_path / "arrays").iterdir():
            path.rename(images / path.name)


def test_a_folder_of_annotations_is_no_folder_of_masks(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2"])
    for path in masks.iterdir():
        path.rename(path.with_suffix(".json"))
    with pytest.raises(DataError, match="labels: no pictures here .* For an export of a labelling tool: --annotations"):
        look(images, masks)


def test_black_and_white_masks_have_two_classes(tmp_path):
    source = look(*folders(tmp_path, ["a1", "a2"], values=(0, 255)))
    assert (source.classes, source.ignore) == (["0 background", "255 foreground"], [])


@pytest.mark.parametrize(("values", "ignore"), [((0, 1, 2, 2, 2), [0]), ((0, 0, 0, 1, 2), []), ((0, 1), [])])
def test_a_name_says_no_label_unless_it_is_the_background(tmp_path, values, ignore):
    images, masks = folders(tmp_path, ["a1", "a2"], values=values)
    (masks / "_classes.csv").write_text("Pixel Value, Class\n0, unlabeled\n1, ball\n2, cup\n")
    assert look(images, masks).ignore == ignore


def test_the_colours_of_a_list_are_the_labels_of_colour_masks(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2"], values=((51, 221, 255), (0, 0, 0), (224, 224, 192)))
    (tmp_path / "labelmap.txt").write_text(CVAT)
    source = look(images, masks)
    expected = ["0 background 0 0 0", "1 ball 250 50 83", "2 cup 51 221 255", "3 ignore 224 224 192"]
    assert (source.masks_are, source.classes, source.ignore) == ("colors", expected, [3])


def test_a_list_without_colours_names_grey_masks_that_were_saved_in_colour(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2"], values=((0, 0, 0), (1, 1, 1), (7, 7, 7)))
    (masks / "class_names.txt").write_text("sky\nroad\ncat\n")
    source = look(images, masks)
    assert (source.masks_are, source.classes) == ("colors", ["0 sky 0 0 0", "1 road 1 1 1", "2 class_2 7 7 7"])
    assert source.class_note == "names from class_names.txt in labels"


def test_a_label_that_is_not_listed_gets_a_name_that_no_other_class_has(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2"], values=(0, 1, 2, 3, 255))
    (masks / "classes.txt").write_text("0 ignore\n1 road\n2 class_3\n")
    source = look(images, masks)
    assert source.classes == ["0 ignore", "1 road", "2 class_3", "3 class_3 2", "255 ignore 2"]
    assert source.ignore == [0, 255]


def test_a_list_that_fits_no_mask_is_not_believed(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2"], values=((9, 0, 0), (0, 1, 1)))
    (masks / "class_names.txt").write_text("sky\nroad\n")
    source = look(images, masks)
    assert source.class_note == "class_names.txt fits no mask: write the names into classes.txt"
    assert source.classes == ["0 class_0 0 1 1", "1 class_1 9 0 0"]


def test_palettes_that_differ_between_masks_mean_colours(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2"], palette=[0, 0, 0, 9, 9, 9, 7, 7, 7])
    assert look(images, masks).masks_are == "labels"
    write(masks / "a2.png", palette=[9, 9, 9, 0, 0, 0, 7, 7, 7])
    source = look(images, masks)
    assert (source.masks_are, source.classes) == ("colors", ["0 class_0 0 0 0", "1 class_1 9 9 9", "2 class_2 7 7 7"])


# --- What cannot be used is one line


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


def test_what_cannot_be_used_is_named(tmp_path):
    images, masks = folders(tmp_path, ["a1", "a2", "a3"])
    mask, image = masks / "a2.png", images / "a2.jpg"
    for damage, message in [
        (lambda: cut(mask), f"{mask}: not a readable mask, or cut short"),
        (lambda: image.write_text("no picture"), f"{image}: not a readable image, or cut short"),
        (lambda: write(mask, size=(24, 40)), f"{mask}: 40x24, but {image} is 36x24. Give both the same size."),
        (lambda: Image.fromarray(np.full((24, 36), 300, np.uint16)).save(mask), f"{mask}: label 300"),
        (lambda: photo(mask), f"{mask}: 864 colours, expected one for each class. Is it a mask?"),
        (lambda: write(masks / "a-2.png"), f"{masks}: the names of a-2.png and a2.png look the same"),
    ]:  # fmt: skip
        before = {path: path.read_bytes() for path in (image, mask)}
        damage()
        with pytest.raises(DataError) as caught:
            look(images, masks)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
        for path, content in before.items():
            path.write_bytes(content)


def test_masks_of_one_class_are_refused(tmp_path):
    with pytest.raises(DataError, match="every mask is 'class_4' only, expected 2 classes or more"):
        look(*folders(tmp_path, ["a1", "a2"], values=(4,)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("Odd-Name --images photos --masks labels", "'Odd-Name': expected a name of lower-case letters, digits and _ that begins with a letter, and none of "),
        ("raw --images photos --masks labels", "'raw': expected a name of lower-case letters, digits and _ that begins with a letter, and none of "),
        ("123 --images photos --masks labels", "'123': expected a name of lower-case letters, digits and _ that begins with a letter, and none of "),
        ("taken --images photos --masks labels", "taken: exists, and nothing is overwritten. Choose another name, or move it away."),
        ("own --images nowhere --masks labels", "nowhere: no such folder"),
        ("own --images photos", "expected --images and --masks, or --pairs instead of both"),
        ("own --images photos --masks taken", "taken: no pictures here"),
        ("own --images photos --masks others", "photos: 0 pairs with others, expected 2 or more. An image is called a1.jpg and a mask b7.png."),
        ("own --images photos --masks labels --backbone resnt18", "params.yaml: grid.own_resnt18_os8.backbone: unknown name 'resnt18'; did you mean 'resnet18'?"),
        ("own --images photos --masks labels --weights x.pth", "--weights: got 'x.pth', expected none, imagenet or a file"),
        ("own --images photos --masks labels --classes nowhere", "nowhere: not found."),
        ("own --pairs train.txt --pairs other.txt", "--pairs: got train.txt, other.txt, expected one list, or one with train and one with val in its name"),
        ("own --pairs train.txt --pairs val.txt --pairs other.txt", "--pairs: got train.txt, val.txt, other.txt, expected one list, or one with train"),
        ("own --pairs train.txt --pairs val.txt --pairs train_2.txt", "--pairs: got train.txt, val.txt, train_2.txt, expected one list, or one with train"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    folders(tmp_path, ["a1", "a2"])
    write(tmp_path / "others/b7.png")
    (tmp_path / "taken").mkdir()
    for name in ("train", "train_2", "val", "other"):
        (tmp_path / f"{name}.txt").write_text("photos/a1.jpg labels/a1.png\n")
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(cli.grid, ["new", *words.split()])
    assert isinstance(result.exception, (ParamsError, DataError))
    assert str(result.exception).startswith(message)
    assert sorted(tmp_path.rglob("*")) == before


# --- The project


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project as `grid new` writes it, outside of any repository."""
    monkeypatch.chdir(tmp_path)
    folders(tmp_path, [f"{film}_{n}" for film in "abc" for n in range(4)], values=(0, 1, 2, 255))
    result = CliRunner().invoke(
        cli.grid, ["new", "streets", "--images", "photos", "--masks", "labels", "--weights", "imagenet"]
    )
    assert result.exception is None, result.output
    return tmp_path / "streets"


def test_the_settings_are_valid_and_the_format_reads_the_data(project, monkeypatch):
    monkeypatch.chdir(project)
    params = load_params()
    assert list(params.cells) == ["streets_resnet50c_os8", "streets_resnet50c_os16"]
    assert params.cell("streets_resnet50c_os8").model.pretrained
    config = params.dataset("streets")
    layout = folder.scan(Places().raw("streets"), config, params.splits["streets"])
    assert {split: len(samples) for split, samples in layout.samples.items()} == config.images == {"train": 8, "val": 4}
    assert layout.classes == ("class_0", "class_1", "class_2")
    assert set(np.unique(folder.load_mask(layout.samples["val"][0]).ids)) == {0, 1, 2, 255}


def test_a_project_has_a_history_of_its_own_unless_it_is_in_a_repository(tmp_path, monkeypatch, project):
    assert (project / ".git").is_dir()
    around = tmp_path / "around"
    around.mkdir()
    subprocess.run(["git", "init", "--quiet", around], check=True)
    (around / ".gitignore").write_text("/ignored/\n")
    monkeypatch.chdir(around)
    for name, has_git in (("kept", False), ("ignored", True)):
        CliRunner().invoke(cli.grid, f"new {name} --images ../photos --masks ../labels".split())
        assert (around / name / ".dvc/config").is_file()
        assert (around / name / ".git").exists() == has_git


def test_sizes_are_multiples_of_the_output_stride():
    for size, gpu, crop, resize in [
        ((360, 480), False, [112, 160], [192, 144]),
        ((360, 480), True, [336, 448], [448, 336]),
        ((1080, 1920), False, [96, 176], [224, 128]),
        ((1920, 1080), True, [512, 512], [1024, 576]),
        ((24, 36), False, [16, 32], [32, 16]),
    ]:
        found = scaffold.recipe(size, 100, gpu)
        assert (found["crop"], found["resize"]) == (crop, resize)


def test_the_stages_of_a_project_are_those_of_the_grid_without_its_code(project):
    load = YAML(typ="safe").load
    stages, expected = (load((root / "dvc.yaml").read_text())["stages"] for root in (project, ROOT))
    expected["check"] |= {"always_changed": True, "deps": ["params.yaml", "reports/equivalent_code.txt"]}
    assert stages == expected


def test_the_settings_that_all_projects_share_are_those_of_the_grid(project):
    load = YAML(typ="safe").load
    own, expected = (load((root / "params.yaml").read_text()) for root in (project, ROOT))
    for key in ("aspp_channels", "auxiliary_channels", "pretrained"):
        own["model"].pop(key)
        expected["model"].pop(key)
    for section in ("model", "train", "augment", "protocols", "runtime"):
        assert own[section] == expected[section]


def test_a_project_predicts_on_aligned_images(project):
    params = load_params(project / "params.yaml")
    assert [params.cell(name).inference.align for name in params.runs] == [True, True]


@pytest.mark.parametrize(
    ("own", "theirs"), [("dvc/class_iou.json", ".dvc/plots/class_iou.json"), ("dvc/confusion_share.json", ".dvc/plots/confusion_share.json"),
    ("dvc/config", ".dvc/config"), ("dvcignore", ".dvcignore"), ("gitignore", "examples/camvid/.gitignore")],
)  # fmt: skip
def test_the_other_files_are_those_of_the_grid(own, theirs):
    assert (scaffold.TEMPLATES / own).read_text() == (ROOT / theirs).read_text()


def test_a_cell_elsewhere_finds_a_project_in_a_folder_of_a_repository(project, tmp_path, monkeypatch):
    around = tmp_path / "around"
    around.mkdir()
    subprocess.run(["git", "init", "--quiet", around], check=True)
    monkeypatch.chdir(around)
    CliRunner().invoke(cli.grid, ["new", "own", "--images", "../photos", "--masks", "../labels"])
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@host.example", "commit", "--quiet", "-m", "own"]
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(commit, check=True)
    with snapshot(around / "own", committed(around / "own"), tmp_path / "cells/a", "own_resnet18_os8") as copy:
        assert str(around / "own/.dvc/cache") in (copy / ".dvc/config.local").read_text()
        assert (copy / "data/raw/own/images/a_0.jpg").is_file()


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC
def test_a_check_that_always_runs_leaves_the_others_up_to_date(project, monkeypatch):
    """The code of such a project is not in its folder, so DVC cannot see whether it has changed."""
    monkeypatch.chdir(project)
    stages = {
        "check": {"cmd": "echo 1 >> ran; echo {} > code.json", "always_changed": True, "outs": [{"code.json": {"cache": False}}]},
        **{name: {"cmd": f"cp code.json {name}", "deps": ["code.json"], "outs": [name]} for name in ("kept", "lost")},
    }  # fmt: skip
    (project / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], check=True)
    (project / "lost").unlink()
    assert outdated(read_fresh_stages(())) == {"lost": "lost deleted"}
    assert (project / "ran").read_text() == "1\n1\n"

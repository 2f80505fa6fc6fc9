"""Annotations of labelling tools: the masks that they draw, what is refused, and what `grid new` makes of an export."""

import json
import random

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as runs
from pycocotools.coco import COCO

from deeplab.errors import DataError
from deeplab.groups import COPY
from deeplab.store import IGNORE, Store
from pipeline import cli
from pipeline.data.formats.annotations import annotated, exports
from pipeline.data.formats.annotations.regions import expand, filled, runs_of
from pipeline.data.formats.split import SERIES, drawn, proposed
from pipeline.errors import ParamsError
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.schema import FolderOptions, SplitOptions
from pipeline.stages import prepare
from tests.annotations import (
    BALL,
    CUP,
    REGIONS,
    SIZE,
    coco,
    cvat,
    cvat_polygon,
    labelme,
    png,
    write_export,
    write_images,
    yolo,
)
from tests.raw import dataset_config, write_grey_mask, write_image
from tests.tiny import tiny_params

PLACES = {
    "coco": {"annotations": "result.json", "images": "images"},
    "cvat": {"annotations": "annotations.xml", "images": "images"},
    "labelme": {"annotations": ".", "images": "."},
    "yolo": {"annotations": "labels", "images": "images"},
}
TOOLS = list(PLACES)


def scan(root, tool, classes="0 background\n1 ball\n2 cup\n", **options):
    (root / "classes.txt").write_text(classes)
    settings = FolderOptions(**{**PLACES[tool], "classes": "classes.txt", **options})
    return annotated.scan(root, dataset_config(tool, {}, folder=settings), ("all",)).samples["all"]


def masks(root, tool, **options):
    """The mask of each image."""
    return {sample.id: annotated.load_mask(sample).ids for sample in scan(root, tool, **options)}


def refused(root, tool, **options):
    with pytest.raises(DataError) as caught:
        scan(root, tool, **options)
    return str(caught.value).replace(f"{root}/", "")


def put(root, content, tool="coco"):
    """Replace the annotations in `root`."""
    file = {"coco": "result.json", "labelme": "a1.json", "cvat": "annotations.xml", "yolo": "labels/a1.txt"}[tool]
    (root / file).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def export(tmp_path):
    return lambda tool, regions=REGIONS: write_export(tmp_path / tool, tool, regions)


# --- What is drawn


def drawn_by_coco(file):
    """The masks of a COCO file as pycocotools reads it: later annotations over earlier ones."""
    content = COCO(file)
    found = {}
    for image in content.loadImgs(content.getImgIds()):
        ids = np.zeros(SIZE, np.uint8)
        for each in content.loadAnns(content.getAnnIds(image["id"])):
            ids[content.annToMask(each) > 0] = {7: 1, 9: 2}[each["category_id"]]
        found[image["file_name"][:-4]] = ids
    return found


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with numpy 2
def test_the_masks_of_coco_are_those_of_pycocotools_to_the_pixel(tmp_path):
    rng = random.Random(1)
    regions = {
        f"a{i}": [(rng.choice(["ball", "cup"]), [rng.uniform(-4, 34) for _ in range(2 * rng.randint(3, 7))]) for _ in range(5)]
        for i in range(20)
    }  # fmt: skip
    content = coco(regions)
    for number, each in enumerate(content["annotations"][::3]):  # some as run lengths, plain and packed
        whole = runs.merge(runs.frPyObjects(each["segmentation"], *SIZE))
        plain = {"size": list(SIZE), "counts": expand(whole["counts"].decode())}
        each["segmentation"] = plain if number % 2 else {"size": list(SIZE), "counts": whole["counts"].decode()}
    content["annotations"] = [
        each
        for each in content["annotations"]
        if isinstance(each["segmentation"], list) or runs.area(runs.frPyObjects(each["segmentation"], *SIZE) if isinstance(each["segmentation"]["counts"], list) else each["segmentation"])
    ]  # fmt: skip
    write_images(tmp_path / "images", regions)
    put(tmp_path, content)
    expected = drawn_by_coco(tmp_path / "result.json")
    found = masks(tmp_path, "coco")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert sum((mask > 0).sum() for mask in found.values()) > 1000


def test_every_tool_draws_the_same_mask_of_the_same_regions(export):
    expected = masks(export("coco"), "coco")
    assert set(np.unique(expected["a1"])) == {0, 1, 2}
    assert (expected["a1"][9, 13], expected["a2"][9, 13]) == (2, 1)  # the later region is on top
    for tool in TOOLS[1:]:
        found = masks(export(tool), tool)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_parts_of_an_annotation_are_one_region_and_a_crowd_is_ignored_below_the_others(tmp_path):
    write_images(tmp_path / "images", ["a1"])
    content = coco({"a1": [("ball", BALL), ("cup", CUP)]})
    content["annotations"][0]["segmentation"] = [BALL, [20, 2, 30, 2, 30, 6, 20, 6]]
    content["annotations"].append(
        {"image_id": 0, "category_id": 9, "iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [0, 768]}}
    )
    put(tmp_path, content)
    ids = masks(tmp_path, "coco")["a1"]
    assert (ids[5, 6], ids[4, 25], ids[12, 20], ids[0, 0]) == (1, 1, 2, IGNORE)


def test_labelme_draws_rectangles_circles_and_masks(export):
    root = export("labelme", {"a1": []})
    inside = np.zeros((6, 5), bool)
    inside[2:, 1:] = True
    shapes = [
        {"label": "ball", "shape_type": "rectangle", "points": [[14, 12], [4, 4]]},
        {"label": "cup", "shape_type": "circle", "points": [[24, 12], [24, 18]]},
        {"label": "cup", "shape_type": "mask", "points": [[1, 15], [5, 20]], "mask": png(inside)},
    ]
    put(root, labelme("a1", []) | {"shapes": shapes}, "labelme")
    ids = masks(root, "labelme")["a1"]
    assert (ids == 1).sum() == 80
    assert abs((ids[:, 16:] == 2).sum() - np.pi * 36) < 8
    np.testing.assert_array_equal(ids[15:21, 1:6] == 2, inside)


def test_cvat_draws_by_z_order_and_reads_masks_boxes_and_ellipses(export):
    root = export("cvat", {"a1": []})
    elements = (
        cvat_polygon("ball", BALL, z=2)
        + '<mask label="cup" rle="3, 2, 1" left="1" top="18" width="3" height="2" z_order="0"/>'
        + '<box label="cup" xtl="10" ytl="4" xbr="20" ybr="12" rotation="0" z_order="1"/>'
        + '<box label="cup" xtl="22" ytl="14" xbr="30" ybr="16" rotation="90" z_order="1"/>'
        + '<ellipse label="ball" cx="10" cy="18" rx="3" ry="2"/><tag label="ball"/>'
    )
    put(root, cvat({"a1": elements}), "cvat")
    ids = masks(root, "cvat")["a1"]
    assert (ids[6, 12], ids[6, 16]) == (1, 2)  # the polygon has the higher z_order, though it is first
    assert ids[19, 1:4].tolist() == [2, 2, 0]
    assert (ids[11:19, 25:27] == 2).all()  # the turned box is 2 wide and 8 high
    assert (ids[15, 22:25] == 0).all()
    assert ids[18, 10] == 1


def test_ignored_and_merged_classes_are_those_of_the_settings(export):
    root = export("coco")
    assert set(np.unique(masks(root, "coco", ignore=(0,))["a1"])) == {0, 1, IGNORE}
    merged = masks(root, "coco", classes="0 background\n1 ball\n2 cup\n3 thing\n", map={1: 3, 2: 3})["a1"]
    assert set(np.unique(merged)) == {0, 1}


def test_an_image_without_regions_is_background_and_one_that_is_not_listed_is_left_out(export, capsys):
    for tool in TOOLS:
        root = export(tool, {"a1": REGIONS["a1"], "a2": []})
        assert not masks(root, tool)["a2"].any()
        write_image(root / PLACES[tool]["images"] / "extra.jpg", SIZE)
        assert masks(root, tool).keys() == {"a1", "a2"}
        assert "1 images are in no annotation and left out, such as" in capsys.readouterr().out


def test_images_are_found_by_name_in_subfolders_and_with_the_slashes_of_windows(tmp_path):
    write_images(tmp_path / "images/cam", ["a1", "a2"])
    put(tmp_path, coco(prefix="C:\\photos\\"))
    assert masks(tmp_path, "coco").keys() == {"cam/a1", "cam/a2"}


# --- What is refused


def changed(change):
    content = coco()
    change(content)
    return content


def shape(**changes):
    return labelme("a1", []) | {"shapes": [{"label": "ball", "points": [[1, 1], [9, 1], [9, 9]]} | changes]}


BAD = [
    ("coco", "", "result.json: empty file"),
    ("coco", "no JSON", "result.json: invalid JSON: expected ident at line 1 column 2. Is this an export of COCO instances"),
    ("coco", '{"images": [', "result.json: invalid JSON: EOF while parsing"),
    ("coco", [], "result.json: got [], input should be an object. Is this an export of COCO"),
    ("coco", {"images": []}, "result.json: categories: field required"),
    ("coco", coco({}), "result.json: lists no image. Is this an export of COCO"),
    ("coco", labelme("a1", []), "result.json: images: field required. Is this an export of COCO"),
    ("coco", changed(lambda c: c["images"][0].update(height=0)), "result.json: images.0.height: got 0, input should be greater than 0"),
    ("coco", changed(lambda c: c["images"][1].update(id=0)), "result.json: an id of images or categories occurs twice"),
    ("coco", changed(lambda c: c["images"][1].update(file_name="gone.jpg")), "result.json: image 'gone.jpg': 'gone.jpg': no such image in images"),
    ("coco", changed(lambda c: c["images"][1].update(file_name="a1.jpg")), "result.json: image 'a1.jpg': 'a1.jpg' is also listed by result.json: image 'a1.jpg'"),
    ("coco", changed(lambda c: c["annotations"][0].update(image_id=55)), "result.json: annotations.0.image_id: got 55, which the file does not list"),
    ("coco", changed(lambda c: c["annotations"][0].update(category_id=1)), "result.json: annotations.0.category_id: got 1, which the file does not list"),
    ("coco", changed(lambda c: c["categories"][0].update(name="dog")), "the class 'dog' is not in classes.txt. Add it"),
    ("coco", changed(lambda c: c["annotations"][0].pop("segmentation")), "annotations.0: got None, expected polygons of numbers, and no boxes alone"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation=[])), "annotations.0: no polygon. Delete it, or draw it again"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]])), "annotations.0: a polygon of 4 numbers, expected x and y of 3 points or more"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]])), "annotations.0: a polygon of 7 numbers, expected x and y"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation=[["x"]])), "annotations.0: got [['x']], expected polygons of numbers"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation=[[40, 2, 50, 2, 50, 9]])), "annotations.0: a polygon outside of the image, which is 32x24"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 1e12, 2, 50, 9]])), "annotations.0: a polygon far beyond the image, which is 32x24"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation={"size": [24, 32], "counts": []})), "annotations.0: run lengths with counts [] of 0 pixels, expected 768"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation={"size": [24, 32], "counts": [768]})), "annotations.0: run lengths with counts without a pixel"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation={"size": [32, 24], "counts": [0, 768]})), "annotations.0: run lengths with size [32, 24], but the image is [24, 32]"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation={"size": [24, 32], "counts": "garbage"})), "annotations.0: run lengths with counts 'garbage' of"),
    ("coco", changed(lambda c: c["annotations"][0].update(segmentation={})), "annotations.0: run lengths with size None, but the image is [24, 32]"),
    ("labelme", "[1]", "a1.json: got [1], input should be an object. Is this an export of LabelMe?"),
    ("labelme", {"version": 1}, "a1.json: imagePath: field required"),
    ("labelme", shape(points=[[1, 1], [2, 2]]), "a1.json: shapes.0: a polygon of 4 numbers, expected x and y of 3 points or more"),
    ("labelme", shape(shape_type="line"), "a1.json: shapes.0: 'line' has no area. Draw a polygon instead, or delete it"),
    ("labelme", shape(shape_type="circle", points=[[1, 1]]), "a1.json: shapes.0: a circle of 1 points, expected 2"),
    ("labelme", shape(shape_type="mask", mask="###"), "a1.json: shapes.0: its mask is no PNG in base64 (Error)"),
    ("labelme", shape(shape_type="mask", mask=png(np.zeros((2, 2)))), "a1.json: shapes.0: a mask without a pixel"),
    ("labelme", shape(shape_type="mask", mask=png(np.ones((90, 2)))), "a1.json: shapes.0: a mask of 2x90 at 1, 1 in an image of 32x24"),
    ("labelme", shape(points=[["x", 1]]), "a1.json: shapes.0.points.0.0: got 'x', input should be a valid number"),
    ("labelme", shape(label="dog"), "a1.json: the class 'dog' is not in classes.txt"),
    ("labelme", labelme("b7", []), "a1.json: 'b7.jpg': no such image in"),
    ("cvat", "<annotations>", "annotations.xml: not annotations of CVAT for images 1.1 (no element found"),
    ("cvat", "<annotation><folder/></annotation>", "annotations.xml: not annotations of CVAT for images 1.1 (a file of annotation)"),
    ("cvat", "<annotations><track/></annotations>", "(a file of tracks). Export them as that"),
    ("cvat", '<!DOCTYPE a [<!ENTITY b "b">]><annotations>&b;</annotations>', "annotations.xml: not annotations of CVAT for images 1.1 (EntitiesForbidden"),
    ("cvat", '<annotations><image name="a1.jpg"/></annotations>', "annotations.xml: image 'a1.jpg' has no height and width"),
    ("cvat", cvat({"a1": '<polyline label="cup" points="1,2;3,4"/>'}), "image 'a1.jpg', polyline 1: 'polyline' has no area"),
    ("cvat", cvat({"a1": '<polygon label="cup" points="1,2;3"/>'}), "image 'a1.jpg', polygon 1: a polygon of 3 numbers"),
    ("cvat", cvat({"a1": '<polygon label="cup" points="1,x"/>'}), "image 'a1.jpg', polygon 1: could not convert string to float: 'x'"),
    ("cvat", cvat({"a1": '<polygon points="1,2;3,4;5,6"/>'}), "image 'a1.jpg', polygon 1: no attribute 'label'"),
    ("cvat", cvat({"a1": '<polygon label="cup" points="1,2;3,4;5,6" z_order="top"/>'}), "image 'a1.jpg', polygon 1: invalid literal for int() with base 10: 'top'"),
    ("cvat", cvat({"a1": '<mask label="cup" rle="1, 2" left="0" top="0" width="3" height="3"/>'}), "image 'a1.jpg', mask 1: the runs cover 3 pixels, expected 3x3"),
    ("cvat", cvat({"a1": '<mask label="cup" rle="0, 9" left="30" top="0" width="3" height="3"/>'}), "mask 1: a mask of 3x3 at 30, 0 in an image of 32x24"),
    ("yolo", "0 0.5 0.5 0.2 0.2\n", "labels/a1.txt:1: a box, expected a polygon. Export YOLO segmentation, not detection"),
    ("yolo", "0 0.1 0.1 0.9 0.1 0.9\n", "labels/a1.txt:1: a polygon of 5 numbers, expected x and y of 3 points or more"),
    ("yolo", "\n0 1 2 30 2 30 20\n", "labels/a1.txt:2: a polygon from 1 to 30, expected shares of the image, from 0 to 1"),
    ("yolo", "5 0.1 0.1 0.9 0.1 0.9 0.9\n", "labels/a1.txt: the class '5' is not in classes.txt"),
    ("yolo", "0 0.1 0.1 a 0.1 0.9 0.9\n", "labels/a1.txt:1: got [['0.1', '0.1', 'a', '0.1', '0.9', '0.9', expected polygons of numbers"),
    ("yolo", "0 nan 0.1 0.9 0.1 0.9 0.9\n", "labels/a1.txt:1: got [['nan'"),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "content", "message"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_named_with_its_place(export, tool, content, message):
    root = export(tool)
    put(root, content, tool)
    text = refused(root, tool)
    assert message in text
    assert "Traceback" not in text


def test_ten_thousand_problems_are_grouped_and_the_advice_is_given_once(export):
    root = export("coco")
    content = coco()
    content["annotations"] = [each | {"segmentation": [[1, 2, 3, 4]]} for each in content["annotations"] * 2500]
    put(root, content)
    lines = refused(root, "coco").splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("10000 problems in the annotations:")
    assert lines[1].startswith("  10000 alike, for example result.json: annotations.0: a polygon of 4 numbers")


def test_run_lengths_of_garbage_are_refused_before_they_reach_the_decoder(export):
    """pycocotools writes outside of its memory for run lengths that do not fit."""
    root = export("coco")
    rng = random.Random(0)
    content = coco()
    content["annotations"] = [
        content["annotations"][0] | {"segmentation": {"size": [24, 32], "counts": "".join(chr(rng.randrange(1, 300)) for _ in range(rng.randrange(30)))}}
        for _ in range(500)
    ]  # fmt: skip
    put(root, content)
    assert "500 problems in the annotations" in refused(root, "coco")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotations": "gone"}, "gone: not found. It is named by folder.annotations in params.yaml"),
        ({"images": "gone"}, "gone: not found. It is named by folder.images in params.yaml"),
        ({"classes": "1 ball\n2 cup\n"}, "classes.txt: no label 0, which pixels without a region get"),
        (
            {"split": SplitOptions(val=0.5, group=r"x(\d)")},
            "split.group 'x(\\\\d)' is not in 2 of 2 names, such as 'a1'",
        ),
        ({"split": SplitOptions(val=1e-9)}, "split.val 1e-09 draws 0 of 2 images, in 2 groups"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named(export, options, message):
    root = export("coco")
    (root / "classes.txt").write_text("")
    settings = {"classes": "0 background\n1 ball\n2 cup\n", **options}
    (root / "classes.txt").write_text(settings.pop("classes"))
    folder = FolderOptions(**{**PLACES["coco"], "classes": "classes.txt", **settings})
    with pytest.raises(DataError) as caught:
        annotated.scan(root, dataset_config("coco", {}, folder=folder), ("train", "val"))
    assert message in str(caught.value)


def test_two_files_of_one_name_in_subfolders_are_refused(tmp_path):
    for folder in ("x", "y"):
        write_images(tmp_path / "images" / folder, ["a1"])
    put(tmp_path, coco({"a1": []}))
    assert "'a1.jpg': 2 images have this name, such as images/x/a1.jpg" in refused(tmp_path, "coco")


def test_an_image_of_another_size_than_its_annotation_is_refused(export, tmp_path):
    root = export("coco")
    write_image(root / "images/a2.jpg", (24, 30))
    (root / "classes.txt").write_text("0 background\n1 ball\n2 cup\n")
    options = FolderOptions(**PLACES["coco"], classes="classes.txt", split=SplitOptions(val=0.5))
    config = dataset_config("coco", {"train": 1, "val": 1}, folder=options)
    with pytest.raises(DataError, match=r"image 'a2.jpg': 32x24, but .*a2.jpg is 30x24"):
        prepare.build("tiny", config, ("train", "val"), root, tmp_path / "store", workers=1)


# --- How images are divided


def test_a_new_image_moves_no_other_one():
    names = [f"{film}_{number:03}" for film in "abcdefghij" for number in range(6)]
    options = SplitOptions(val=0.3, group=r"^(.)_")
    before = {split: drawn(names, options, split, "x") for split in ("train", "val")}
    after = {split: drawn([*names, "k_001", "b_900"], options, split, "x") for split in ("train", "val")}
    assert all(before[split] == after[split] - {"k_001", "b_900"} for split in before)
    films = {split: {name[0] for name in before[split]} for split in before}
    assert min(map(len, films.values())) > 0
    assert not films["train"] & films["val"]
    assert before["train"] | before["val"] == set(names)


def test_the_share_of_a_draw_is_about_the_one_that_was_asked_for():
    names = [f"x{number}" for number in range(4000)]
    assert 0.18 < len(drawn(names, SplitOptions(val=0.2), "val", "x")) / len(names) < 0.22


def test_copies_of_an_image_by_roboflow_stay_together():
    names = [f"p{number}_jpg.rf.{copy}{number}" for number in range(40) for copy in "abc"]
    val = drawn(names, SplitOptions(val=0.4), "val", "x")
    assert {COPY.sub("", name) for name in val}.isdisjoint(COPY.sub("", name) for name in set(names) - val)


@pytest.mark.parametrize(
    "names", [["a", "b"], [f"a{n}" for n in range(7)], [f"{f}_{n}" for f in "abcdefgh" for n in range(9)]]
)
def test_a_proposal_leaves_no_split_empty(names):
    options = proposed(names)
    assert min(len(drawn(names, options, split, "x")) for split in ("train", "val")) > 0


def test_another_split_than_train_and_val_is_refused_with_a_draw():
    with pytest.raises(ParamsError, match="splits of folder.split: unknown name 'test'"):
        drawn(["a", "b"], SplitOptions(val=0.5), "test", "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": {"val": 1.5}}, "datasets.tiny.folder.split.val: got 1.5, expected less than 1"),
        ({"split": {"val": 0.2, "group": "("}}, "datasets.tiny.folder.split.group: got '(', expected a regular expression"),
        ({"split": {"val": 0.2}, "images": "{split}"}, "datasets.tiny.folder.split: expected without {split} in images"),
        ({"masks": "masks"}, "datasets.tiny.folder.annotations: expected with images, and without masks"),
        ({"images": "{name}"}, "datasets.tiny.folder.images: got '{name}', expected only {split} in braces"),
        ({"annotations": None, "masks": "masks"}, "datasets.tiny.folder.annotations: expected with the formats coco, cvat"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(tmp_path, options, message):
    folder = {"annotations": "a.json", "images": "images", "classes": "classes.txt"} | options

    def edit(params):
        params["datasets"]["tiny"].update(format="coco", folder=folder)

    with pytest.raises(ParamsError) as caught:
        load_params(tiny_params(tmp_path / "params.yaml", edit))
    assert message in str(caught.value)


# --- What `grid new` makes of an export


def new(tmp_path, monkeypatch, *words):
    """The params of the project that `grid new` writes, its classes, and what it prints."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.grid, ["new", "own", *map(str, words)])
    if result.exception:
        raise result.exception
    monkeypatch.chdir(tmp_path / "own")
    return load_params(), (tmp_path / "own/classes.txt").read_text().splitlines()[1:], result.output


def read(params):
    """The labels of each split, as `prepare` reads them."""
    config = params.dataset("own")
    layout = annotated.scan(Places().raw("own"), config, tuple(config.images))
    assert {split: len(samples) for split, samples in layout.samples.items()} == config.images
    return {split: {s.id: annotated.load_mask(s).ids for s in samples} for split, samples in layout.samples.items()}


MANY = {f"{film}_{number}": REGIONS["a1"] for film in "abcdef" for number in range(2)}


@pytest.mark.parametrize("tool", TOOLS)
def test_an_undivided_export_becomes_a_project(tmp_path, monkeypatch, tool):
    root = write_export(tmp_path / "export", tool, MANY)
    params, classes, output = new(tmp_path, monkeypatch, "--annotations", root)
    assert params.dataset("own").format == tool
    assert classes == ["0 background", "1 ball", "2 cup"]
    assert params.splits["own"] == ("train", "val")
    assert "proposed: drawn by the hash of their group" in output
    found = read(params)
    assert sum(len(each) for each in found.values()) == 12
    assert all(set(np.unique(ids)) == {0, 1, 2} for each in found.values() for ids in each.values())


def write_splits(root, places, tool):
    """A divided export: `places` has (annotations, images) of each split."""
    for number, (annotation, images) in enumerate(places):
        regions = {f"{number}{name}": each for name, each in REGIONS.items()}
        write_images(root / images, regions)
        path = root / annotation
        if tool == "coco":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(coco(regions)))
            continue
        path.mkdir(parents=True, exist_ok=True)
        for name, each in regions.items():
            content = yolo(each) if tool == "yolo" else json.dumps(labelme(name, each))
            (path / f"{name}.{'txt' if tool == 'yolo' else 'json'}").write_text(content)
    if tool == "yolo":
        (root / "data.yaml").write_text("names:\n  0: ball\n  1: cup\n")


@pytest.mark.parametrize(
    ("tool", "places", "splits", "annotations"),
    [
        ("coco", [("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid"), ("test/_annotations.coco.json", "test")], ["train", "valid", "test"], "{split}/_annotations.coco.json"),
        ("coco", [("annotations/instances_train2017.json", "train2017"), ("annotations/instances_val2017.json", "val2017")], ["train2017", "val2017"], "annotations/instances_{split}.json"),
        ("coco", [("train.json", "images"), ("val.json", "images")], ["train", "val"], "{split}.json"),
        ("yolo", [("train/labels", "train/images"), ("valid/labels", "valid/images")], ["train", "valid"], "{split}/labels"),
        ("yolo", [("labels/train", "images/train"), ("labels/val", "images/val")], ["train", "val"], "labels/{split}"),
        ("labelme", [("train", "train"), ("val", "val")], ["train", "val"], "{split}"),
    ],
)  # fmt: skip
def test_the_splits_of_an_export_are_kept(tmp_path, monkeypatch, tool, places, splits, annotations):
    write_splits(tmp_path / "export", places, tool)
    params, classes, _ = new(tmp_path, monkeypatch, "--annotations", "export")
    options = params.dataset("own").folder
    assert (list(params.dataset("own").images), options.annotations) == (splits, f"annotations/{annotations}")
    assert (params.splits["own"], options.split) == (tuple(splits[:2]), None)
    assert classes == ["0 background", "1 ball", "2 cup"]
    found = read(params)
    assert [len(each) for each in found.values()] == [2] * len(splits)


def test_the_table_of_a_project_is_of_its_pixels(tmp_path):
    report = exports.describe(write_export(tmp_path, "yolo", MANY)).report
    expected = masks(tmp_path, "yolo")["a_0"]
    for label, name in enumerate(["background", "ball", "cup"]):
        assert f"    {label}  {name:24}{(expected == label).mean():7.1%}      12" in report


def test_a_file_of_annotations_may_be_named_from_the_current_folder(tmp_path, monkeypatch):
    write_export(tmp_path / "export", "coco", MANY)
    params, _, _ = new(tmp_path, monkeypatch, "--annotations", "export/result.json")
    assert params.dataset("own").folder.annotations == "annotations/result.json"
    assert sum(len(each) for each in read(params).values()) == 12


def test_images_may_be_elsewhere(tmp_path, monkeypatch):
    root = write_export(tmp_path / "export", "coco", MANY)
    (root / "images").rename(tmp_path / "photos")
    params, _, _ = new(tmp_path, monkeypatch, "--annotations", root / "result.json", "--images", "photos")
    options = params.dataset("own").folder
    assert (options.annotations, options.images) == ("annotations/result.json", "images")
    assert sum(len(each) for each in read(params).values()) == 12


def test_files_that_tools_put_beside_their_annotations_are_no_second_export(tmp_path, monkeypatch):
    """Label Studio writes notes.json beside YOLO, CVAT lists of images, and images of CVAT lie in a folder of the task."""
    root = write_export(tmp_path / "export", "yolo", MANY)
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "ball"}], "info": {}}')
    (root / "train.txt").write_text("images/a_0.jpg\n")
    assert exports.describe(root).format == "yolo"
    root = write_export(tmp_path / "cvat", "coco", MANY)
    (root / "images").rename(tmp_path / "default")
    (root / "images").mkdir()
    (tmp_path / "default").rename(root / "images/default")
    params, _, _ = new(tmp_path, monkeypatch, "--annotations", root)
    assert sum(len(each) for each in read(params).values()) == 12


def test_a_category_of_roboflow_that_only_groups_others_is_no_class(tmp_path):
    root = write_export(tmp_path, "coco", MANY)
    content = json.loads((root / "result.json").read_text())
    content["categories"] = [{"id": 0, "name": "things", "supercategory": "none"}] + [
        each | {"supercategory": "things"} for each in content["categories"]
    ]
    put(root, content)
    assert exports.describe(root).classes == ["0 background", "1 ball", "2 cup"]


def test_the_words_of_labelme_for_background_and_ignore_are_understood(tmp_path):
    regions = {name: [("_background_", BALL), ("__ignore__", CUP), ("ball", [0, 0, 3, 0, 3, 3])] for name in MANY}
    root = write_export(tmp_path, "labelme", regions)
    (root / "labels.txt").write_text("__ignore__\n_background_\nball\ncup\n")
    source = exports.describe(root)
    assert (source.classes, source.ignore) == (["0 _background_", "1 __ignore__", "2 ball", "3 cup"], [1])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: None, "no annotations here. Name the folder or the file of one export: COCO instances"),
        (lambda root: (write_export(root, "coco"), write_export(root, "yolo")), "annotations of several tools, coco and yolo"),
        (lambda root: (root / "a.json").write_text("{"), "no annotations here"),
        (lambda root: (root / "a.json").write_text('{"categories": [], "images"'), "a.json: invalid JSON: EOF while parsing"),
        (lambda root: write_grey_mask(root / "SegmentationClass/a.png", np.zeros(SIZE, np.uint8)), "masks without images. Export them with images"),
        (lambda root: (root / "a.json").write_text('[{"id": 1, "data": {}, "annotations": []}]'), "a.json: the JSON of Label Studio. Export COCO or YOLO"),
        (lambda root: write_image(root / "task-1-annotation-2-by-1-tag-ball-0.png"), "for brushes of Label Studio"),
        (lambda root: (write_export(root, "coco"), (root / "b.json").write_text(json.dumps(coco()))), "2 annotation files, such as b.json and result.json. Name one of them"),
        (lambda root: (write_export(root, "yolo"), (root / "data.yaml").write_text("names: [ball]")), "data.yaml: 1 classes, but regions have class 1, counted from 0"),
        (lambda root: (write_export(root, "yolo"), (root / "data.yaml").write_text("nc: 3")), "data.yaml: names: got None, expected a list of the classes"),
        (lambda root: (write_export(root, "coco"), put(root, changed(lambda c: c["annotations"][0].update(category_id=1)))), "1 problems in the annotations:"),
    ],
)  # fmt: skip
def test_an_export_that_cannot_be_used_is_named(tmp_path, write, message):
    (tmp_path / "export").mkdir()
    write(tmp_path / "export")
    with pytest.raises(DataError) as caught:
        exports.describe(tmp_path / "export")
    assert message in str(caught.value)


def test_annotations_exclude_masks_and_must_exist(tmp_path):
    with pytest.raises(ParamsError, match="--annotations: expected without --masks and --pairs"):
        exports.describe(tmp_path, masks=tmp_path)
    with pytest.raises(ParamsError, match="nowhere: no such file or folder"):
        exports.describe(tmp_path / "nowhere")


# --- Exports that are masks


def test_masks_of_cvat_are_read_with_their_labelmap(tmp_path):
    for name in ("a1", "a2", "b1"):
        write_image(tmp_path / f"JPEGImages/{name}.jpg", SIZE)
        colors = np.array([(0, 0, 0), (250, 50, 83)], np.uint8)[(np.arange(32) > 9).astype(int)]
        path = tmp_path / f"SegmentationClass/{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.broadcast_to(colors, (*SIZE, 3)).copy()).save(path)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nball:250,50,83::\n")
    source = exports.describe(tmp_path)
    assert (source.format, source.masks_are) == ("folder", "colors")
    assert source.classes == ["0 background 0 0 0", "1 ball 250 50 83"]


def test_masks_of_roboflow_are_read_with_their_classes_and_splits(tmp_path):
    for split in ("train", "valid"):
        for name in ("a", "b"):
            write_image(tmp_path / f"{split}/{split}{name}.jpg", SIZE)
            write_grey_mask(
                tmp_path / f"{split}/{split}{name}_mask.png", np.tile(np.arange(32, dtype=np.uint8) // 16, (24, 1))
            )
        (tmp_path / f"{split}/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, ball\n")
    source = exports.describe(tmp_path)
    assert (source.format, source.classes) == ("folder", ["0 background", "1 ball"])
    assert {split: len(pairs) for split, pairs in source.splits.items()} == {"train": 2, "val": 2}


# --- The whole way


def test_annotations_are_prepared_as_any_other_data_set(export, tmp_path):
    root = export("cvat", MANY)
    (root / "classes.txt").write_text("0 background\n1 ball\n2 cup\n")
    options = FolderOptions(**PLACES["cvat"], classes="classes.txt", split=SplitOptions(val=0.3, group="^(.)_"))
    counts = {split: len(drawn(MANY, options.split, split, "x")) for split in ("train", "val")}
    config = dataset_config("cvat", counts, folder=options)
    prepare.build("tiny", config, ("train", "val"), root, tmp_path / "store", workers=2)
    expected = masks(root, "cvat")
    for split in ("train", "val"):
        part = Store(tmp_path / "store").split(split)
        for index, record in enumerate(part.records):
            np.testing.assert_array_equal(part.mask(index), expected[record.id])


def test_regions_of_a_photo_with_an_orientation_belong_to_the_upright_one(export):
    """Labelling tools show photos upright, so heights and widths are those of the upright photo."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for tool in TOOLS:
        root = export(tool, {"a1": REGIONS["a1"]})
        expected = masks(root, tool)["a1"]
        Image.fromarray(np.zeros((32, 24, 3), np.uint8)).save(root / PLACES[tool]["images"] / "a1.jpg", exif=exif)
        np.testing.assert_array_equal(masks(root, tool)["a1"], expected)


@given(
    arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6))).filter(np.any), st.integers(0, 3), st.integers(0, 3)
)
def test_run_lengths_of_a_mask_give_it_back(inside, left, top):
    size = (inside.shape[0] + top + 1, inside.shape[1] + left)
    whole = np.zeros(size, bool)
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    np.testing.assert_array_equal(filled(runs_of(inside, left, top, size), size), whole)


def test_a_size_that_no_memory_holds_is_refused_before_it_is_drawn(export):
    for tool, content in [
        ("coco", changed(lambda c: c["images"][0].update(height=1 << 19, width=1 << 19))),
        ("cvat", cvat({"a1": '<mask label="cup" rle="0,1" left="0" top="0" width="1" height="1"/>'}).replace("32", "524288")),
        ("labelme", shape(shape_type="mask", mask=png(np.ones((1, 1)))) | {"imageWidth": 1 << 19, "imageHeight": 1 << 19}),
    ]:  # fmt: skip
        root = export(tool)
        put(root, content, tool)
        with pytest.raises(
            DataError, match=r"524288, but .*a1.jpg is 32x24|524288x24, but .*a1.jpg is 32x24|far beyond"
        ):
            masks(root, tool)


def test_frames_of_one_film_stay_together_in_a_proposal(tmp_path, monkeypatch):
    regions = {f"film{film}_{frame:03}": REGIONS["a1"] for film in "abcdefghij" for frame in range(3)}
    params, _, _ = new(tmp_path, monkeypatch, "--annotations", write_export(tmp_path / "export", "coco", regions))
    assert params.dataset("own").folder.split.group == SERIES
    films = [{name[:5] for name in each} for each in read(params).values()]
    assert not films[0] & films[1]

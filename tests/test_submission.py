"""`grid export CELL submission`: archives as the test servers of VOC, ADE20k and Cityscapes take them, and their scores."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deeplab import load_model
from deeplab.decode import read_image
from deeplab.errors import DataError
from deeplab.metrics import confusion_matrix, score
from pipeline import cli
from pipeline.data.formats import ade20k, cityscapes, voc
from pipeline.errors import ParamsError
from pipeline.predict import submission
from pipeline.settings.places import Places
from tests.raw import write_grey_mask, write_ids, write_image
from tests.tiny import tiny_params, write_weights

SHARED = Path(__file__).parents[2] / "shared/data/official/cityscapes"
VOC = "data/raw/tiny/VOCdevkit/VOC2012"
RNG = np.random.default_rng(0)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes the folder of a project whose data set is of a format."""
    monkeypatch.chdir(tmp_path)

    def make(kind, allow_subset=True):
        def edit(params):
            params["datasets"]["tiny"] |= {"format": kind, "allow_subset": allow_subset}

        tiny_params(tmp_path / "params.yaml", edit)
        return tmp_path

    return make


def network(classes, predict):
    """What predicts without a network: `predict` is image -> train ids."""
    return SimpleNamespace(classes=range(classes), about={"settings": {"dataset": "tiny"}}, predict=predict)


def write(model, source=None):
    return submission.write(model, source, Path("out"), Places())


def masks(path):
    """Name -> picture, of all members of an archive."""
    if path.suffix == ".zip":
        with ZipFile(path) as file:
            return {name: Image.open(io.BytesIO(file.read(name))) for name in file.namelist()}
    with tarfile.open(path) as file:
        return {name: Image.open(io.BytesIO(file.extractfile(name).read())) for name in file.getnames()}


def write_voc(ids=("2008_000006", "2007_000042")):
    write_ids(Path(VOC, "ImageSets/Segmentation/test.txt"), ids)
    for name in ids:
        write_image(Path(VOC, f"JPEGImages/{name}.jpg"))


def write_cities(split="test", count=1):
    files = [
        Path(f"data/raw/tiny/leftImg8bit/{split}/ulm/ulm_{index:06}_000019_leftImg8bit.png") for index in range(count)
    ]
    for file in files:
        write_image(file, (1024, 2048))
    return files


@pytest.mark.usefixtures("one_thread")
def test_the_archive_of_voc_holds_palette_masks_of_its_labels_under_the_path_of_comp6(project, monkeypatch):
    monkeypatch.setitem(submission.SERVERS, "voc", submission.SERVERS["voc"]._replace(images=2))
    here = project("voc", allow_subset=False)
    write_voc()
    write_weights(here / "w.safetensors", classes=21)
    arguments = ["export", "w.safetensors", "submission", "--out", "out"]
    said = CliRunner().invoke(cli.grid, arguments, standalone_mode=False, catch_exceptions=False).output
    assert "out/results.tar.gz: 2 masks. Upload: http://host.robots.ox.ac.uk" in said
    found = masks(here / "out/results.tar.gz")
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert list(found) == [f"{folder}/2007_000042.png", f"{folder}/2008_000006.png"]
    expected = load_model("w.safetensors").predict(read_image(Path(VOC, "JPEGImages/2007_000042.jpg")))
    for picture in found.values():  # the two images are the same
        assert picture.mode == "P"
        assert picture.getpalette()[3 * 15 : 3 * 16] == [192, 128, 128]  # person
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_the_archive_of_ade20k_holds_grey_masks_of_labels_from_1_to_150(project):
    project("ade20k")
    write_image(Path("data/raw/tiny/release_test/testing/ADE_test_00000001.jpg"), (15, 20))
    write_image(Path("data/raw/tiny/release_test/testing/ADE_test_00000001.JPG.txt.png"))  # not an image of the set
    ids = np.arange(300).reshape(15, 20) % 150
    found = masks(write(network(150, lambda image: ids)))
    assert list(found) == ["ADE_test_00000001.png"]
    assert found["ADE_test_00000001.png"].mode == "L"
    np.testing.assert_array_equal(np.asarray(found["ADE_test_00000001.png"]), ids + 1)


def test_the_archive_of_cityscapes_holds_label_ids_at_full_size(project, capsys):
    project("cityscapes")
    write_cities()
    ids = (np.arange(1024 * 2048) % 19).reshape(1024, 2048)
    found = masks(write(network(19, lambda image: ids)))
    assert "1 masks. The test set has 1,525 images." in capsys.readouterr().out
    picture = found["ulm_000000_000019_leftImg8bit.png"]
    assert (len(found), picture.mode, picture.size) == (1, "L", (2048, 1024))
    label_ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    np.testing.assert_array_equal(np.asarray(picture), label_ids[ids])


def test_other_images_are_those_of_a_folder_or_of_a_list_of_voc(project):
    project("voc")
    write_voc()
    Path(VOC, "ImageSets/Segmentation/val.txt").write_text("2007_000042\n")
    model = network(21, lambda image: np.zeros(image.shape[:2], int))
    assert len(masks(write(model, Path(VOC, "ImageSets/Segmentation/val.txt")))) == 1
    assert len(masks(write(model, Path(VOC, "JPEGImages")))) == 2


@pytest.mark.fault(
    "input",
    "images that a test server would refuse",
    "no test set, a list without ids or with one twice, an image missing, damaged, small or double, other classes",
    "`grid export CELL submission` says so in one line, exit code 65 or 78, and writes no archive",
)
@pytest.mark.parametrize(
    ("kind", "spoil", "match"),
    [
        ("shapes", lambda: None, "tiny has the format shapes, but only voc, ade20k, cityscapes have a test server"),
        ("voc", lambda: None, "Segmentation/test.txt: not found. Put the test set there, or name .* with --images"),
        ("ade20k", lambda: None, "release_test/testing: not found"),
        ("voc", lambda: write_voc(("2007_000042", "2007_000042")), "test.txt:2: 2007_000042 is already in line 1"),
        ("voc", lambda: write_voc(()), r"test.txt: 0 images with names as in voc, expected 1,456 \(test\), 12 \(train\)"),
        ("voc", lambda: (write_voc(), Path(VOC, "JPEGImages/2007_000042.jpg").unlink()), "2007_000042.jpg: missing"),
        ("voc", lambda: (write_voc(), Path(VOC, "JPEGImages/2007_000042.jpg").write_bytes(b"x")), "2007_000042.jpg: not a"),
        ("voc", write_voc, "a network of 19 classes, which are not those of voc"),
        ("cityscapes", lambda: (write_cities(), write_image(write_cities()[0], (512, 1024))), "leftImg8bit.png: 512x1024 pixels, expected 1024x2048"),
        ("cityscapes", lambda: (write_cities(), write_image(Path("data/raw/tiny/leftImg8bit/test/other/ulm_000000_000019_leftImg8bit.png"))), "several images have one name"),
    ],
)  # fmt: skip
def test_images_that_a_server_would_refuse_are_one_line_and_no_archive(project, kind, spoil, match):
    project(kind)
    spoil()
    with pytest.raises((DataError, ParamsError), match=match) as caught:
        write(network(19, None))
    assert "\n" not in str(caught.value)
    assert not list(Path("out").iterdir())


def test_a_number_of_images_that_no_split_has_is_refused_unless_the_data_is_a_subset(project):
    project("cityscapes", allow_subset=False)
    write_cities()
    with pytest.raises(
        DataError, match=r"test: 1 images .* expected 1,525 \(test\), .* datasets.tiny.allow_subset: true"
    ):
        write(network(19, None))


@pytest.mark.fault(
    "kill",
    "the export of a submission is stopped",
    "Ctrl-C at the second image",
    "the archive before it stays, byte for byte, and nothing else",
)
def test_an_archive_is_complete_or_the_one_before(project):
    project("voc")
    write_voc()
    write(network(21, lambda image: np.zeros(image.shape[:2], int)))
    before = Path("out/results.tar.gz").read_bytes()
    asked = []

    def fails(image):
        asked.append(image)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.ones(image.shape[:2], int)

    with pytest.raises(KeyboardInterrupt):
        write(network(21, fails))
    assert [path.name for path in Path("out").iterdir()] == ["results.tar.gz"]
    assert Path("out/results.tar.gz").read_bytes() == before


def test_only_a_submission_has_images(tmp_path):
    arguments = ["export", "w", "onnx", "--out", str(tmp_path), "--images", "photos"]
    with pytest.raises(ParamsError, match="--images: got photos, which belongs to the format submission"):
        CliRunner().invoke(cli.grid, arguments, standalone_mode=False, catch_exceptions=False)


# --- The scores of the servers


def made(classes, labels, images=2, size=(40, 50)):
    """Predicted train ids, and labels of the raw data set that agree with about half of them: one pair for each image."""
    table = {"voc": voc, "ade20k": ade20k, "cityscapes": cityscapes}[labels].TABLE
    own = np.array([int(np.argmax(table == train_id)) for train_id in range(classes)])
    legal = np.flatnonzero(table >= 0)  # what is ignored, too
    for _ in range(images):
        predicted = RNG.integers(0, classes, size).astype(np.uint8)
        other = RNG.choice(legal, size)
        yield predicted, np.where(RNG.random(size) < 0.5, own[predicted], other).astype(np.uint8)


def ours(pairs, table, classes):
    ids = table.astype(np.uint8)
    return score(sum(confusion_matrix(ids[truth], predicted, classes) for predicted, truth in pairs))


def test_our_miou_is_that_of_the_development_kit_of_voc():
    """VOCevalseg.m: counts of the pixels whose truth is below 255, and the mean of TP / (TP + FP + FN) of 21 classes."""
    pairs = list(made(21, "voc"))
    counts = np.zeros((21, 21))
    for predicted, truth in pairs:
        for true, found in zip(truth[truth < 255].tolist(), predicted[truth < 255].tolist(), strict=True):
            counts[true, found] += 1
    expected = np.mean([counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(21)])
    assert ours(pairs, voc.TABLE, 21).mean_iou == pytest.approx(expected, abs=1e-9)


def test_our_miou_is_that_of_the_development_kit_of_ade20k_where_all_its_classes_occur():
    """intersectionAndUnion.m and demoEvaluation.m: what is predicted at the label 0 does not count, and a class that
    does not occur counts as 0, where ours is the mean of those that occur.
    """

    def theirs(pairs):
        intersection, union = np.zeros(150), np.zeros(150)
        for predicted, truth in pairs:
            written = (predicted + 1) * (truth > 0)
            for k in range(1, 151):
                intersection[k - 1] += ((written == k) & (truth == k)).sum()
                union[k - 1] += ((written == k) | (truth == k)).sum()
        return (intersection / (np.finfo(float).eps + union)).mean()

    pairs = list(made(150, "ade20k"))
    assert ours(pairs, ade20k.TABLE, 150).mean_iou == pytest.approx(theirs(pairs), abs=1e-9)
    few = [(predicted % 10, truth % 11) for predicted, truth in pairs]
    assert theirs(few) == pytest.approx(ours(few, ade20k.TABLE, 150).mean_iou * 10 / 150, abs=1e-9)


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """A function that gives the mean IoU that cityscapesScripts computes from an archive and masks of label ids."""
    evaluation = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="pip install --no-deps cityscapesscripts pyquaternion (CONTRIBUTING.md)",
    )
    folder = tmp_path / "unpacked"
    settings = {"predictionPath": str(folder), "predictionWalk": None, "evalInstLevelScore": False, "quiet": True}
    for name, value in {**settings, "exportFile": str(tmp_path / "result.json")}.items():
        monkeypatch.setattr(evaluation.args, name, value)

    def evaluate(archive, truths):
        with ZipFile(archive) as file:
            file.extractall(folder)
        found = [evaluation.getPrediction(evaluation.args, str(truth)) for truth in truths]
        return evaluation.evaluateImgLists(found, list(map(str, truths)), evaluation.args)["averageScoreClasses"]

    return evaluate


@pytest.mark.filterwarnings("ignore")  # of cityscapesScripts, which leaves files open
def test_the_evaluator_of_cityscapes_computes_our_miou_from_the_archive(evaluated, project):
    project("cityscapes")
    pairs = list(made(19, "cityscapes", size=(1024, 2048)))
    truths = []
    for file, (_, truth) in zip(write_cities("val", len(pairs)), pairs, strict=True):
        truths.append(Path(str(file).replace("leftImg8bit", "gtFine").removesuffix(".png") + "_labelIds.png"))
        write_grey_mask(truths[-1], truth)
    predictions = iter(pairs)
    archive = write(network(19, lambda image: next(predictions)[0]), Path("data/raw/tiny/leftImg8bit/val"))
    expected = ours(pairs, cityscapes.TABLE, 19)
    assert (expected.classes_evaluated, 0.2 < expected.mean_iou < 0.8) == (19, True)
    assert evaluated(archive, truths) == pytest.approx(expected.mean_iou, abs=1e-9)


@pytest.mark.skipif(not SHARED.exists(), reason="no Cityscapes here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
def test_the_evaluator_of_cityscapes_computes_our_miou_on_real_images(evaluated, project):
    here = project("cityscapes")
    model = load_model(write_weights(here / "w.safetensors", classes=19))
    archive = write(model, SHARED / "leftImg8bit/val")
    samples = cityscapes.scan(SHARED, None, ("val",)).samples["val"]
    matrix = sum(
        confusion_matrix(cityscapes.load_mask(each).ids, model.predict(read_image(each.image)), 19) for each in samples
    )
    found = evaluated(archive, [each.mask for each in samples])
    assert found == pytest.approx(score(matrix).mean_iou, abs=1e-9)

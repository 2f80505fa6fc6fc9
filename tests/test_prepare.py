import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab.errors import DataError
from deeplab.store import Store
from pipeline import prepare
from pipeline.datasets.layout import RawSample
from pipeline.errors import ParamsError
from pipeline.folder_options import FolderOptions
from tests.raw import dataset_config, labels, write_ade20k, write_cityscapes, write_grey_mask, write_image, write_voc

ROOT = Path(__file__).parents[1]


def prepare_ade20k(tmp_path, train=2, val=1, **changes):
    config = dataset_config("ade20k", {"train": train, "val": val}, **changes)
    prepare.run("ade", config, ("train", "val"), tmp_path / "raw", tmp_path / "store", workers=2)
    return Store(tmp_path / "store")


@pytest.mark.parametrize(
    ("kind", "write", "images", "labels"),
    [
        ("voc", write_voc, {"trainaug": 4, "val": 1}, {0, 1, 2, 3, 255}),
        ("ade20k", write_ade20k, {"train": 2, "val": 1}, {0, 149, 255}),
        ("cityscapes", write_cityscapes, {"train": 2, "val": 1}, {0, 18, 255}),
        ("shapes", lambda raw: None, {"train": 6, "val": 2}, {0, 1, 2, 3, 4, 5, 255}),
    ],
)
def test_each_format_becomes_a_store_of_train_ids(tmp_path, capsys, kind, write, images, labels):
    write(tmp_path / "raw")
    train, val = images
    prepare.run("name", dataset_config(kind, images), (train, val), tmp_path / "raw", tmp_path / "store", workers=2)
    store = Store(tmp_path / "store")
    store.verify()
    assert {split: len(store.split(split)) for split in images} == images
    assert {label for record in store.records for label in record.pixels} == labels
    said = capsys.readouterr().out
    assert f"name {train}: {images[train]} images, " in said
    assert f"name {val}: {images[val]} images, " in said
    assert "of pixels ignored" in said


def write_folder(raw):
    for name in ("train/a.jpg", "train/b.png", "val/c.jpg"):
        write_image(raw / name)
        write_grey_mask(raw / f"masks/{name[:-4]}.png", labels((0, 1, 9)))
    (raw / "classes.txt").write_text("0 a\n1 b\n")


OWN = {"folder": FolderOptions(images="{split}", masks="masks/{split}", classes="classes.txt", ignore=(9,))}


@pytest.mark.parametrize(
    ("kind", "write", "images", "options"),
    [
        ("voc", write_voc, {"trainaug": 4, "val": 1}, {}),
        ("ade20k", write_ade20k, {"train": 2, "val": 1}, {}),
        ("cityscapes", write_cityscapes, {"train": 2, "val": 1}, {}),
        ("folder", write_folder, {"train": 2, "val": 1}, OWN),
    ],
)
def test_a_file_backed_store_holds_the_bits_of_a_packed_one(tmp_path, kind, write, images, options):
    write(tmp_path / "raw")
    rng = np.random.default_rng(0)
    for path in (tmp_path / "raw").rglob("*"):
        if path.name.endswith((".jpg", "_leftImg8bit.png")):
            noise = rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)
            path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())
    packed, backed = (
        prepared(tmp_path, kind, images, store=kept, **options).split(next(iter(images)))
        for kept in ("packed", "files")
    )
    assert backed.files
    assert not packed.files
    for index in range(len(packed)):
        np.testing.assert_array_equal(backed.image(index), packed.image(index))
        np.testing.assert_array_equal(backed.mask(index), packed.mask(index))
    manifests = {(tmp_path / f"{kept}/manifest.json").read_bytes() for kept in ("packed", "files")}
    assert len(manifests) == 1


def prepared(tmp_path, kind, images, store, **options):
    config = dataset_config(kind, images, store=store, **options)
    prepare.run("name", config, tuple(images), tmp_path / "raw", tmp_path / store, workers=2)
    return Store(tmp_path / store)


def test_drawn_images_have_no_files_to_go_back_to(tmp_path):
    with pytest.raises(
        ParamsError, match=r"store: got 'files', expected 'packed': the format shapes has no image files"
    ):
        prepared(tmp_path, "shapes", {"train": 2, "val": 1}, store="files")


@pytest.mark.parametrize("kept", ["packed", "files"])
def test_what_a_killed_prepare_leaves_is_never_taken_for_a_store(tmp_path, monkeypatch, kept):
    write_ade20k(tmp_path / "raw")
    images = {"train": 2, "val": 1}
    prepared(tmp_path, "ade20k", images, store=kept)

    def hang(results, *_):
        yield next(results)
        yield next(results)
        (tmp_path / "hangs").touch()
        time.sleep(60)

    monkeypatch.setattr(prepare, "with_progress", hang)
    child = multiprocessing.get_context("fork").Process(target=prepared, args=(tmp_path, "ade20k", images, kept))
    child.start()
    while not (tmp_path / "hangs").exists():
        assert child.is_alive()
        time.sleep(0.01)
    child.kill()
    child.join()
    assert (tmp_path / kept / "masks.bin").exists()
    with pytest.raises(DataError, match=r"manifest.json: No such file or directory. Prepare the data set"):
        Store(tmp_path / kept)
    monkeypatch.undo()
    assert len(prepared(tmp_path, "ade20k", images, store=kept).records) == 3


def test_the_number_of_workers_does_not_change_the_store(tmp_path):
    config = dataset_config("shapes", {"train": 9, "val": 1})
    for workers in (1, 3):
        prepare.run("shapes", config, ("train", "val"), tmp_path, tmp_path / f"store{workers}", workers)
    assert Store(tmp_path / "store1").fingerprint == Store(tmp_path / "store3").fingerprint


def test_a_raw_folder_may_be_a_link(tmp_path):
    write_ade20k(tmp_path / "elsewhere")
    (tmp_path / "raw").symlink_to("elsewhere")
    assert len(prepare_ade20k(tmp_path).records) == 3


def test_a_subset_is_refused_until_the_settings_accept_it(tmp_path, capsys):
    write_ade20k(tmp_path / "raw")
    with pytest.raises(
        DataError, match=r"subset: 2 of 20210 train images, 1 of 2000 val images. .* set datasets.ade.all"
    ):
        prepare_ade20k(tmp_path, 20210, 2000)
    assert not (tmp_path / "store").exists()
    prepare_ade20k(tmp_path, 20210, 1, allow_subset=True)
    said = "ade: subset: 2 of 20210 train images (accepted by datasets.ade.allow_subset)\n"
    assert capsys.readouterr().out.startswith(said)


def test_more_images_than_published_are_refused_too(tmp_path):
    write_ade20k(tmp_path / "raw")
    with pytest.raises(DataError, match=r"raw: not the published set: 2 of 1 train images. "):
        prepare_ade20k(tmp_path, 1, 1)


def test_an_empty_split_is_refused_even_where_a_subset_is_accepted(tmp_path):
    write_ade20k(tmp_path / "raw", val=0)
    with pytest.raises(DataError, match=r"raw: no images for the split 'val' of ade"):
        prepare_ade20k(tmp_path, allow_subset=True)


def test_an_image_in_both_train_and_val_is_refused(tmp_path):
    write_voc(tmp_path / "raw", train=["a1", "b1"], val=["b1"])
    config = dataset_config("voc", {"train": 2, "val": 1})
    with pytest.raises(DataError, match=r"raw: 1 images are both in train and in val: b1$"):
        prepare.run("voc", config, ("train", "val"), tmp_path / "raw", tmp_path / "store")


def break_ade20k(raw):
    """Write 26 samples and break 24 of them, each as one of the four kinds of problem; the worst ones last."""
    write_ade20k(raw, train=25)
    root = raw / "ADEChallengeData2016"
    images, masks = root / "images/training", root / "annotations/training"
    for index in range(2):
        write_grey_mask(masks / f"ADE_train_{index:08}.png", labels((0, 151)))
    Image.new("RGB", (36, 24)).save(masks / "ADE_train_00000002.png")
    write_image(images / "ADE_train_00000003.jpg", size=(24, 35))
    for index in range(5, 25):
        (images / f"ADE_train_{index:08}.jpg").write_bytes(b"broken")
    (masks / "ADE_train_00000024.png").unlink()


def test_all_problems_are_told_together_worst_first_and_no_store_is_left(tmp_path):
    break_ade20k(tmp_path / "raw")
    with pytest.raises(DataError) as caught:
        prepare_ade20k(tmp_path, 25, 1)
    first, *listed, last = str(caught.value).split("\n  ")
    assert (
        first == f"{tmp_path}/raw: 24 of 26 samples cannot be used. Mend or replace these files, nothing was written:"
    )
    assert [line.partition(": ")[0][-12:] for line in listed] == [f"{index:08}.jpg" for index in range(5, 25)]
    assert listed[0].endswith("ADE_train_00000005.jpg: not a readable image, or cut short")
    assert last == f"and 4 more. All: {tmp_path}/store.problems.txt"
    in_file = (tmp_path / "store.problems.txt").read_text().splitlines()
    assert in_file[:20] == listed
    kinds = [
        "00003.png: the mask is 36x24, but ",
        "00002.png: a picture of mode RGB",
        "00000.png: label 151",
        "00001.png: label 151",
    ]
    for line, kind in zip(in_file[20:], kinds, strict=True):
        assert kind in line
    assert list((tmp_path / "store").iterdir()) == []


def test_the_list_of_problems_goes_when_they_are_mended(tmp_path):
    write_ade20k(tmp_path / "raw")
    mask = tmp_path / "raw/ADEChallengeData2016/annotations/training/ADE_train_00000000.png"
    mask.unlink()
    with pytest.raises(DataError, match=rf"\n  {mask}: missing\n  This list: {tmp_path}/store.problems.txt$"):
        prepare_ade20k(tmp_path)
    assert (tmp_path / "store.problems.txt").read_text() == f"{mask}: missing\n"
    write_grey_mask(mask, labels((0, 1)))
    prepare_ade20k(tmp_path)
    assert not (tmp_path / "store.problems.txt").exists()


def test_an_image_and_a_mask_of_different_size_are_named(tmp_path):
    write_ade20k(tmp_path / "raw")
    image = tmp_path / "raw/ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    write_image(image, size=(24, 35))
    with pytest.raises(DataError, match=rf"ADE_train_00000001.png: the mask is 36x24, but {image} is 35x24"):
        prepare_ade20k(tmp_path)


def test_unknown_names_in_the_settings_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(ParamsError, match=r"datasets.d.format: unknown name 'cityscape'; did you mean 'cityscapes'\?"):
        prepare.run("d", dataset_config("cityscape", {}), ("train", "val"), tmp_path, tmp_path / "store")
    write_ade20k(tmp_path)
    with pytest.raises(ParamsError, match=r"datasets.d.images: unknown name 'val'; known: train"):
        prepare.run("d", dataset_config("ade20k", {"train": 2}), ("train", "val"), tmp_path, tmp_path / "store")


def die(sample):
    os._exit(9)


def test_a_worker_that_dies_is_reported_with_its_sample():
    sample = RawSample(id="a", image=Path("a.jpg"), mask=Path("a.png"))
    with pytest.raises(DataError, match=r"a.jpg: a worker process died on this sample or one of the next 2\. "):
        list(prepare.decode_all(die, [sample] * 3, workers=1))


def test_few_samples_wait_in_memory_for_a_slow_writer():
    started = []

    def samples():
        for index in range(50):
            started.append(index)
            yield RawSample(id=str(index), image=Path(), mask=Path())

    results = prepare.decode_all(small, samples(), workers=2)
    next(results)
    assert len(started) == 5
    assert len(list(results)) == 49


def small(sample):
    return np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)


def test_lines_tell_the_progress_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SECONDS_BETWEEN_LINES", 0)
    assert list(prepare.with_progress(["a", "b"], 2, "prepare voc")) == ["a", "b"]
    assert capsys.readouterr().out == "prepare voc: 1/2 images\nprepare voc: 2/2 images\n"


def test_the_command_ends_with_one_line_and_the_code_of_bad_data(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pipeline.prepare",
        "voc",
        "--raw",
        tmp_path / "raw",
        "--out",
        tmp_path / "store",
        "--card",
        tmp_path / "card",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 65
    assert done.stderr == (
        f"error: {tmp_path}/raw: not found. Put or link the folder that holds VOCdevkit and benchmark_RELEASE there.\n"
    )
    assert done.stdout == ""

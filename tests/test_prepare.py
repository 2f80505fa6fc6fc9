import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab import store_writer
from deeplab.decode import read_image
from deeplab.errors import DataError
from deeplab.store import Store
from deeplab.store_writer import StoreWriter
from pipeline.data import pack
from pipeline.data.duplicates import find_duplicates
from pipeline.data.formats import FORMATS, shapes
from pipeline.data.formats.base import RawSample
from pipeline.errors import ParamsError, describe
from pipeline.settings.schema import FolderOptions
from pipeline.stages import prepare
from tests.faults import tried
from tests.raw import dataset_config, labels, write_ade20k, write_cityscapes, write_grey_mask, write_image, write_voc
from tests.tiny import write_store

ROOT = Path(__file__).parents[1]


def prepare_ade20k(tmp_path, train=2, val=1, **changes):
    config = dataset_config("ade20k", {"train": train, "val": val}, **changes)
    prepare.build("ade", config, ("train", "val"), tmp_path / "raw", tmp_path / "store", workers=2)
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
    prepare.build("name", dataset_config(kind, images), (train, val), tmp_path / "raw", tmp_path / "store", workers=2)
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
    prepare.build("name", config, tuple(images), tmp_path / "raw", tmp_path / store, workers=2)
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

    def hang(results, title, total):
        if title.endswith("sizes"):
            yield from results
            return
        yield next(results)
        yield next(results)
        (tmp_path / "hangs").touch()
        time.sleep(60)

    monkeypatch.setattr(prepare, "shown", hang)
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
        prepare.build("shapes", config, ("train", "val"), tmp_path, tmp_path / f"store{workers}", workers)
    assert Store(tmp_path / "store1").fingerprint == Store(tmp_path / "store3").fingerprint


def test_a_raw_folder_may_be_a_link(tmp_path):
    write_ade20k(tmp_path / "elsewhere")
    (tmp_path / "raw").symlink_to("elsewhere")
    assert len(prepare_ade20k(tmp_path).records) == 3


@tried.LISTS
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


@tried.LISTS
def test_more_images_than_published_are_refused_too(tmp_path):
    write_ade20k(tmp_path / "raw")
    with pytest.raises(DataError, match=r"raw: not the published set: 2 of 1 train images. "):
        prepare_ade20k(tmp_path, 1, 1)


@tried.LISTS
def test_an_empty_split_is_refused_even_where_a_subset_is_accepted(tmp_path):
    write_ade20k(tmp_path / "raw", val=0)
    with pytest.raises(DataError, match=r"raw: no images for the split 'val' of ade"):
        prepare_ade20k(tmp_path, allow_subset=True)


@tried.LISTS
def test_an_image_in_both_train_and_val_is_refused(tmp_path):
    write_voc(tmp_path / "raw", train=["a1", "b1"], val=["b1"])
    config = dataset_config("voc", {"train": 2, "val": 1})
    with pytest.raises(DataError, match=r"raw: 1 images are both in train and in val: b1$"):
        prepare.build("voc", config, ("train", "val"), tmp_path / "raw", tmp_path / "store")


def break_ade20k(raw):
    """Write 26 samples and break 24 of them in four ways, the worst ones last, and the last one twice."""
    write_ade20k(raw, train=25)
    root = raw / "ADEChallengeData2016"
    images, masks = root / "images/training", root / "annotations/training"
    for index in range(2):
        write_grey_mask(masks / f"ADE_train_{index:08}.png", labels((0, 151)))
    Image.new("RGB", (36, 24), "red").save(masks / "ADE_train_00000002.png")
    write_image(images / "ADE_train_00000003.jpg", size=(24, 35))
    for index in range(5, 25):
        (images / f"ADE_train_{index:08}.jpg").write_bytes(b"broken")
    (masks / "ADE_train_00000024.png").unlink()


@tried.IMAGES
def test_all_problems_are_told_together_worst_first_and_no_store_is_left(tmp_path):
    break_ade20k(tmp_path / "raw")
    with pytest.raises(DataError) as caught:
        prepare_ade20k(tmp_path, 25, 1)
    first, *listed, last = str(caught.value).split("\n  ")
    assert first == f"{tmp_path}/raw: 24 of 26 samples cannot be used. Fix or replace these files. Nothing was written."
    kinds = [
        "20 alike, for example .*ADE_train_00000005.jpg: not a readable image, or cut short",
        ".*00024.png: missing",
        ".*00003.png: the mask is 36x24, but .*",
        ".*00002.png: a picture of mode RGB, .*",
        "2 alike, for example .*00000.png: label 151 .*",
    ]
    assert len(listed) == len(kinds)
    for line, kind in zip(listed, kinds, strict=True):
        assert re.match(kind, line)
    assert last == f"All: {tmp_path}/store.problems.txt"
    in_file = (tmp_path / "store.problems.txt").read_text().splitlines()
    assert [line.partition(": ")[0][-12:] for line in in_file[:20]] == [f"{index:08}.jpg" for index in range(5, 25)]
    assert len(in_file) == 25
    assert list((tmp_path / "store").iterdir()) == []


def test_masks_of_the_same_wrong_mode_are_one_line(tmp_path):
    write_ade20k(tmp_path / "raw", train=4)
    masks = tmp_path / "raw/ADEChallengeData2016/annotations/training"
    for index in range(3):
        Image.new("RGB", (36, 24), (9, 80, 200)).save(masks / f"ADE_train_{index:08}.png")
    with pytest.raises(DataError) as caught:
        prepare_ade20k(tmp_path, 4, 1)
    _, line, last = str(caught.value).split("\n  ")
    assert line.startswith(
        f"3 alike, for example {masks}/ADE_train_00000000.png: a picture of mode RGB, expected a mask"
    )
    assert last == f"All: {tmp_path}/store.problems.txt"
    assert len((tmp_path / "store.problems.txt").read_text().splitlines()) == 3


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


@tried.MASKS
def test_an_image_and_a_mask_of_different_size_are_named(tmp_path):
    write_ade20k(tmp_path / "raw")
    image = tmp_path / "raw/ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    write_image(image, size=(24, 35))
    with pytest.raises(DataError, match=rf"ADE_train_00000001.png: the mask is 36x24, but {image} is 35x24"):
        prepare_ade20k(tmp_path)


@tried.SETTINGS
def test_unknown_names_in_the_settings_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(ParamsError, match=r"datasets.d.format: unknown name 'cityscape'; did you mean 'cityscapes'\?"):
        prepare.build("d", dataset_config("cityscape", {}), ("train", "val"), tmp_path, tmp_path / "store")
    write_ade20k(tmp_path)
    with pytest.raises(ParamsError, match=r"datasets.d.images: unknown name 'val'; known: train"):
        prepare.build("d", dataset_config("ade20k", {"train": 2}), ("train", "val"), tmp_path, tmp_path / "store")


@tried.IMAGES
def test_all_problems_of_one_sample_are_told(tmp_path):
    write_ade20k(tmp_path / "raw", train=3)
    images, masks = (tmp_path / f"raw/ADEChallengeData2016/{kind}/training" for kind in ("images", "annotations"))
    (images / "ADE_train_00000000.jpg").write_bytes(b"broken")
    (masks / "ADE_train_00000000.png").unlink()
    write_image(images / "ADE_train_00000001.jpg", size=(24, 35))
    write_grey_mask(masks / "ADE_train_00000001.png", labels((0, 151)))
    with pytest.raises(DataError) as caught:
        prepare_ade20k(tmp_path, 3, 1)
    first, *listed, _ = str(caught.value).split("\n  ")
    assert "2 of 4 samples cannot be used" in first
    assert [line.rpartition("/ADE_train_0000000")[2][:30] for line in listed] == [
        "0.jpg: not a readable image, o", "0.png: missing", "1.jpg is 35x24", "1.png: label 151 at row 0, col",
    ]  # fmt: skip


def fake(**functions):
    """A format of drawn images, with other functions for some of its own."""
    return SimpleNamespace(**{"scan": shapes.scan, "size": shapes.size, "load_image": shapes.load_image,
                              "load_mask": shapes.load_mask, **functions})  # fmt: skip


def prepare_fake(tmp_path, monkeypatch, count=6, workers=2, **functions):
    monkeypatch.setitem(FORMATS, "fake", fake(**functions))  # workers are forked and see it
    config = dataset_config("fake", {"train": count, "val": 1})
    prepare.build("fake", config, ("train", "val"), tmp_path, tmp_path / "store", workers=workers)


@tried.IMAGES
def test_an_image_that_is_not_as_large_as_its_header_says_is_a_problem(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"train_00000: its header says 9x8, but it is \d+x\d+. Save it again"):
        prepare_fake(tmp_path, monkeypatch, size=lambda sample: (8, 9))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_worker_that_dies_is_reported_with_its_sample(tmp_path, monkeypatch, workers):
    def die(sample):
        return os._exit(9) if sample.id == "train_00013" else shapes.load_image(sample)

    with pytest.raises(DataError, match=r"^train_00013: a worker process died on it. It crashes the decoder or needs"):
        prepare_fake(tmp_path, monkeypatch, count=40, workers=workers, load_image=die)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_worker_that_is_killed_while_it_reads_good_files_is_reported_as_out_of_memory(tmp_path, monkeypatch):
    def die_once(sample):
        if sample.id == "train_00003" and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return shapes.load_image(sample)

    with pytest.raises(DataError, match=r"^A worker process was killed, probably because memory ran out\. Free some"):
        prepare_fake(tmp_path, monkeypatch, load_image=die_once)
    assert list((tmp_path / "store").iterdir()) == []


@tried.SMALL_DISK
@pytest.mark.parametrize("known", [True, False])  # before the first image, and only when a worker writes
def test_a_disk_that_fills_up_is_one_line_and_leaves_no_store(tmp_path, monkeypatch, known):
    if not known:
        monkeypatch.setattr(store_writer, "LIBC", None)
    config = dataset_config("shapes", {"train": 30, "val": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # workers inherit it
        with pytest.raises(OSError, match="File too large") as caught:
            prepare.build("shapes", config, ("train", "val"), tmp_path, tmp_path / "store", workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert describe(caught.value) == (
        f"{tmp_path}/store: no space left on the disk. Free some and run the same command again."
    )
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="a place where nobody may write, root neither")
def test_a_place_without_permission_is_one_line(tmp_path):
    config = dataset_config("shapes", {"train": 2, "val": 1})
    with pytest.raises(OSError, match="/sys/store") as caught:
        prepare.build("shapes", config, ("train", "val"), tmp_path, Path("/sys/store"), workers=1)
    if isinstance(caught.value, PermissionError):  # in some containers it is a read-only file system instead
        assert describe(caught.value).startswith("/sys/store: no permission. Give yourself access to it, or work ")


@tried.SMALL_DISK
def test_too_small_a_disk_is_known_before_the_first_image_is_decoded(tmp_path, monkeypatch):
    decoded = tmp_path / "decoded"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"No space left on device: .*store \([\d,]+ bytes needed, 1,000 free\)"):
        prepare_fake(tmp_path, monkeypatch, load_image=lambda sample: decoded.touch())
    assert not decoded.exists()


def test_ctrl_c_ends_the_workers_and_leaves_no_store(tmp_path, monkeypatch):
    def slow(sample):
        (tmp_path / f"pid{os.getpid()}").touch()
        time.sleep(0.02)
        return shapes.load_image(sample)

    def target():
        os.setpgrp()  # as on a terminal, workers are sent the signal too
        prepare_fake(tmp_path, monkeypatch, count=2000, load_image=slow)

    child = multiprocessing.get_context("fork").Process(target=target)
    child.start()
    while not list(tmp_path.glob("pid*")):
        assert child.is_alive()
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    child.join(10)
    assert child.exitcode == 1  # KeyboardInterrupt; 2000 samples would take 20 s
    assert list((tmp_path / "store").iterdir()) == []
    for path in tmp_path.glob("pid*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("pid")), 0)


def test_pixels_do_not_travel_from_the_workers(tmp_path):
    write_ade20k(tmp_path)
    root = tmp_path / "ADEChallengeData2016"
    sample = RawSample(
        id="a",
        image=root / "images/validation/ADE_val_00000000.jpg",
        mask=root / "annotations/validation/ADE_val_00000000.png",
    )
    write_image(sample.image, size=(500, 600))
    write_grey_mask(sample.mask, labels((0, 1), (500, 600)))
    tasks = pack.tasks([("val", sample)], [(500, 600)])
    work = pack.Work(format="ade20k", store=tmp_path / "store", packed=True, tasks=tasks)
    with StoreWriter(tmp_path / "store", ("a",), ((0, 0, 0),)) as store:
        results = pack.pack_part(work)
        assert len(pickle.dumps(results)) < 1000
        store.keep(results[0].record)
    np.testing.assert_array_equal(Store(tmp_path / "store").split("val").image(0), read_image(sample.image))


# --- Duplicates


def write_pictures(raw):
    """Five pictures to train on and two to validate on; b and d are one, and so are c and x."""
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (24, 36, 3), dtype=np.uint8) for name in "abcey"}
    pictures |= {"d": pictures["b"], "x": pictures["c"]}
    for name, picture in pictures.items():
        path = raw / f"{'val' if name in 'xy' else 'train'}/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        write_grey_mask(raw / f"masks/{path.parent.name}/{name}.png", labels((0, 1, 9) if name != "x" else (1, 0)))
    (raw / "classes.txt").write_text("0 a\n1 b\n")


@pytest.mark.parametrize("kept", ["packed", "files"])
def test_a_picture_in_train_and_val_is_told_loudly_whatever_its_mask(tmp_path, capsys, kept):
    write_pictures(tmp_path / "raw")
    config = dataset_config("folder", {"train": 5, "val": 2}, store=kept, **OWN)
    prepare.build("own", config, ("train", "val"), tmp_path / "raw", tmp_path / "store", workers=2, card=tmp_path)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "own: WARNING: 1 images are in several splits under different names, which makes results too good:",
        "own:   train train/c = val val/x",
        "own: 1 images occur more than once in one split: see the data card",
    ]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["duplicates"] == [
        [{"split": "train", "id": "train/b"}, {"split": "train", "id": "train/d"}],
        [{"split": "train", "id": "train/c"}, {"split": "val", "id": "val/x"}],
    ]
    text = (tmp_path / "card.md").read_text()
    assert (
        "**The same image more than once in several splits, so that results are too good:** train `train/c` = val `val/x`."
        in text
    )
    assert "**The same image more than once in one split:** train `train/b` = train `train/d`." in text


def test_pictures_of_one_checksum_are_told_apart_by_their_pixels(tmp_path):
    store = Store(write_store(tmp_path, {"train": 3, "val": 1}))
    assert find_duplicates(store, [7, 7, 7, 7]) == []


def test_the_command_ends_with_one_line_and_the_code_of_bad_data(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    command = [sys.executable, "-m", "pipeline.stages.prepare", "voc"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 65
    assert done.stderr == (
        "error: data/raw/voc: not found. Put or link the folder that holds VOCdevkit and benchmark_RELEASE there.\n"
    )
    assert done.stdout == ""

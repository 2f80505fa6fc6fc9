import ctypes
import errno
import json
import pickle
import resource
from contextlib import suppress
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab import store_writer
from deeplab.data import TrainingSamples, training_loader
from deeplab.decode import read_image
from deeplab.errors import DataError
from deeplab.histogram import histogram
from deeplab.store import IGNORE, Store
from deeplab.store_writer import PixelFiles, StoreWriter
from pipeline.errors import describe
from tests.faults import tried
from tests.tiny import augment_config, recipe_config, write_store

CLASSES, PALETTE = ("background", "straße", "cat"), ((0, 0, 0), (128, 64, 128), (64, 0, 0))


@st.composite
def samples(draw):
    """Samples of any size: (split, image, mask)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for split in draw(st.lists(st.sampled_from(["train", "val"]), min_size=1, max_size=5)):
        size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        found.append((split, image, rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), size)))
    return found


def write(folder, written):
    with StoreWriter(folder, CLASSES, PALETTE) as writer:
        for index, (split, image, mask) in enumerate(written):
            writer.add(split, f"id {index}", image, mask)
    return Store(folder)


@settings(max_examples=25, deadline=None)  # each writes to the disk for real
@given(written=samples())
def test_a_store_gives_back_what_was_written(tmp_path_factory, written):
    store = write(tmp_path_factory.mktemp("store"), written)
    store.verify()
    assert (store.classes, store.palette) == (CLASSES, PALETTE)
    for name in {split for split, _, _ in written}:
        split = store.split(name)
        expected = [(image, mask) for other, image, mask in written if other == name]
        assert len(split) == len(expected)
        for index, (image, mask) in enumerate(expected):
            np.testing.assert_array_equal(split.image(index), image)
            np.testing.assert_array_equal(split.mask(index), mask)
            record = split.records[index]
            assert (record.height, record.width) == mask.shape
            assert record.pixels == {label: (mask == label).sum() for label in np.unique(mask)}


@settings(max_examples=25, deadline=None)  # each writes to the disk for real
@given(written=samples())
def test_the_same_content_has_the_same_fingerprint_and_one_other_pixel_another(tmp_path_factory, written):
    first = write(tmp_path_factory.mktemp("store"), written).fingerprint
    assert write(tmp_path_factory.mktemp("store"), written).fingerprint == first
    written[-1][1][0, 0, 0] ^= 1
    assert write(tmp_path_factory.mktemp("store"), written).fingerprint != first


@settings(deadline=None)
@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=60), width=st.integers(1, 4))
def test_the_histogram_of_runs_is_that_of_pixels(values, width):
    labels = np.array([values * width] * width, np.uint8)
    np.testing.assert_array_equal(histogram(labels), np.bincount(labels.reshape(-1), minlength=256))


def test_samples_may_be_written_in_any_order_by_several_writers(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 256, (4, width, 3), np.uint8), np.full((4, width), 2, np.uint8)) for width in (5, 1, 3)]
    offsets = (0, 20, 24)
    in_order = write(tmp_path / "a", [("train", *pair) for pair in pairs])
    with StoreWriter(tmp_path / "b", CLASSES, PALETTE) as writer:
        records = {}
        for index in (2, 0, 1):
            with PixelFiles(tmp_path / "b") as files:
                records[index] = files.write("train", f"id {index}", offsets[index], *pairs[index])
        for index in range(3):
            writer.keep(records[index])
    assert Store(tmp_path / "b").fingerprint == in_order.fingerprint
    for name in ("images.bin", "masks.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@tried.SMALL_DISK
def test_a_disk_that_is_too_small_is_known_before_anything_is_written(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: .*\(1,000,000,000,000,000 bytes needed, [\d,]+ free"),
        StoreWriter(tmp_path, CLASSES, PALETTE) as writer,
    ):
        writer.reserve(10**15 // 4)
    assert list(tmp_path.iterdir()) == []


def unsupported(*_):
    ctypes.set_errno(errno.EOPNOTSUPP)
    return -1


@pytest.mark.parametrize("supported", [True, False])
def test_room_that_is_taken_before_changes_nothing_in_the_store(tmp_path, monkeypatch, supported):
    if not supported:
        monkeypatch.setattr(store_writer, "LIBC", SimpleNamespace(fallocate=unsupported))
    pair = np.full((4, 5, 3), 7, np.uint8), np.full((4, 5), 2, np.uint8)
    as_it_comes = write(tmp_path / "a", [("train", *pair)] * 3)
    with StoreWriter(tmp_path / "b", CLASSES, PALETTE) as writer:
        writer.reserve(60)
        for index in range(3):
            writer.add("train", f"id {index}", *pair)
    assert Store(tmp_path / "b").fingerprint == as_it_comes.fingerprint
    for name in ("images.bin", "masks.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_views_that_are_not_contiguous_are_written_as_they_look(tmp_path):
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    split = write(tmp_path, [("train", image[:, ::-1], mask[:, ::-1])]).split("train")
    np.testing.assert_array_equal(split.image(0), image[:, ::-1])
    np.testing.assert_array_equal(split.mask(0), mask[:, ::-1])


def test_what_is_read_cannot_be_written_to(tmp_path):
    split = Store(write_store(tmp_path)).split("train")
    with pytest.raises(ValueError, match="read-only"):
        split.image(0)[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        split.mask(0)[:] = 0


def test_a_label_without_a_class_is_not_written(tmp_path):
    image, mask = np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 3, np.uint8)
    with pytest.raises(AssertionError), StoreWriter(tmp_path, CLASSES, PALETTE) as writer:
        writer.add("train", "a", image, mask)


def test_an_interrupted_writer_leaves_no_file_not_even_of_an_older_store(tmp_path):
    write_store(tmp_path)
    with suppress(KeyboardInterrupt), StoreWriter(tmp_path, CLASSES, PALETTE) as writer:
        writer.add("train", "a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"No such file or directory. Prepare the data set"):
        Store(tmp_path)


def test_a_killed_writer_leaves_no_manifest(tmp_path):
    write_store(tmp_path)
    writer = StoreWriter(tmp_path, CLASSES, PALETTE).__enter__()
    writer.add("train", "a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.bin", "masks.bin"]
    writer.pixels.__exit__()


@pytest.mark.parametrize("size", [50_000, 1_000_000])  # written at once, and still in a buffer when the block ends
@tried.SMALL_DISK
def test_a_full_disk_is_named_and_leaves_no_file(tmp_path, size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    image, mask = np.zeros((1, size, 3), np.uint8), np.zeros((1, size), np.uint8)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * size - 1000, before[1]))
        with (
            pytest.raises(OSError, match="File too large") as caught,
            StoreWriter(tmp_path, CLASSES, PALETTE) as writer,
        ):
            writer.add("train", "a", image, mask)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_keeps_its_pixels_while_a_new_store_is_written(tmp_path):
    split = Store(write_store(tmp_path, seed=1)).split("train")
    mask = split.mask(0).copy()
    write_store(tmp_path, seed=2)
    np.testing.assert_array_equal(split.mask(0), mask)
    assert not np.array_equal(Store(tmp_path).split("train").mask(0), mask)


@pytest.mark.parametrize("name", ["images.bin", "masks.bin"])
@tried.RESULTS
def test_a_truncated_file_is_refused(tmp_path, name):
    path = write_store(tmp_path) / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        DataError, match=rf"{name}: {len(content) - 1:,} bytes, expected {len(content):,} bytes. Prepare"
    ):
        Store(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: missing, expected {len(content):,} bytes. Prepare"):
        Store(tmp_path)


@tried.RESULTS
def test_a_manifest_that_is_cut_or_of_another_version_is_refused(tmp_path):
    path = write_store(tmp_path) / "manifest.json"
    content = path.read_text()
    for broken in (content[:-20], "[]", json.dumps({**json.loads(content), "version": 0})):
        path.write_text(broken)
        with pytest.raises(
            DataError, match=r"manifest.json: not a manifest of version 1, or damaged .*\. Prepare the data set again"
        ):
            Store(tmp_path)


def test_an_unknown_split_names_those_that_are_there(tmp_path):
    with pytest.raises(DataError, match="no samples in split 'test'; available: train, val"):
        Store(write_store(tmp_path)).split("test")


@pytest.mark.parametrize("name", ["images.bin", "masks.bin"])
@tried.RESULTS
def test_verify_names_a_sample_in_which_one_bit_has_changed(tmp_path, name):
    path = write_store(tmp_path, counts={"train": 3}) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"1 samples differ from their checksums, the first is train_1. Prepare"):
        Store(tmp_path).verify()


def test_a_split_travels_to_another_process_without_its_pixels(tmp_path):
    split = Store(write_store(tmp_path)).split("train")
    split.image(0)
    split.mask(0)
    packed = pickle.dumps(split)
    assert len(packed) < split.image(0).size
    np.testing.assert_array_equal(pickle.loads(packed).image(9), split.image(9))


# --- Images that stay in their files


def write_both(folder):
    """The same six JPEGs of noise as a packed and as a file-backed store."""
    rng = np.random.default_rng(0)
    with (
        StoreWriter(folder / "packed", CLASSES, PALETTE) as packed,
        StoreWriter(folder / "files", CLASSES, PALETTE) as backed,
    ):
        for index in range(6):
            size = (30 + index, 50)
            file = folder / f"raw/image {index}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(cv2.imencode(".jpg", rng.integers(0, 256, (*size, 3), dtype=np.uint8))[1].tobytes())
            mask = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), size)
            for writer, kept in ((packed, None), (backed, file)):
                writer.add("train" if index else "val", f"id {index}", read_image(file), mask, file=kept)
    return Store(folder / "packed"), Store(folder / "files")


def test_a_file_backed_store_gives_the_bits_of_a_packed_one_without_holding_them(tmp_path):
    packed, backed = write_both(tmp_path)
    backed.verify()
    assert (tmp_path / "files/images.bin").stat().st_size == 0
    assert (tmp_path / "files/manifest.json").read_bytes() == (tmp_path / "packed/manifest.json").read_bytes()
    assert backed.fingerprint == packed.fingerprint
    for name in ("train", "val"):
        ours, theirs = backed.split(name), packed.split(name)
        for index in range(len(theirs)):
            np.testing.assert_array_equal(ours.image(index), theirs.image(index))
            np.testing.assert_array_equal(ours.mask(index), theirs.mask(index))


def test_a_training_batch_is_the_same_from_either_store(tmp_path):
    batches = [
        next(
            iter(
                training_loader(
                    TrainingSamples(store.split("train"), recipe_config(), augment_config(), 0), 0, 1, 0, False
                )
            )
        )
        for store in write_both(tmp_path)
    ]
    for one, other in zip(*batches, strict=True):
        assert one.equal(other)


def test_the_decoded_image_cannot_be_written_to_either(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        write_both(tmp_path)[1].split("train").image(0)[:] = 0


def test_a_file_backed_store_moves_with_its_files(tmp_path):
    (tmp_path / "here").mkdir()
    packed, _ = write_both(tmp_path / "here")
    expected = packed.split("val").image(0).copy()
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "link").symlink_to("there/files")
    np.testing.assert_array_equal(Store(tmp_path / "there/files").split("val").image(0), expected)
    with pytest.raises(DataError, match=f"{tmp_path}/raw/image 0.jpg: missing"):
        Store(tmp_path / "link").split("val").image(0)


@pytest.mark.parametrize("size", [(30, 50), (30, 51)])  # other pixels, and other dimensions
@tried.IMAGES
def test_a_file_that_has_changed_since_it_was_prepared_is_refused(tmp_path, size):
    _, backed = write_both(tmp_path)
    file = tmp_path / "raw/image 0.jpg"
    file.write_bytes(cv2.imencode(".jpg", np.zeros((*size, 3), np.uint8))[1].tobytes())
    for read in (lambda: backed.split("val").image(0), backed.verify):
        with pytest.raises(DataError, match=rf"{file}: not the image that was prepared .* Restore the file, or prep"):
            read()


@pytest.mark.parametrize("workers", [0, 1])
@tried.IMAGES
def test_a_file_that_vanishes_while_training_is_told_in_one_line(tmp_path, workers):
    _, backed = write_both(tmp_path)
    for index in range(1, 6):
        (tmp_path / f"raw/image {index}.jpg").unlink()
    samples = TrainingSamples(backed.split("train"), recipe_config(), augment_config(), 0)
    with pytest.raises(DataError) as caught:
        next(iter(training_loader(samples, 0, 1, workers, False)))
    message = describe(caught.value)
    assert message.startswith(f"{tmp_path}/raw/image ")
    assert message.endswith(".jpg: missing")
    assert "\n" not in message


def test_a_store_is_never_taken_for_the_other_kind(tmp_path):
    write_both(tmp_path)
    files = tmp_path / "files/image_files.txt"
    lines = files.read_text().splitlines()
    assert lines[0] == "files"
    assert lines[1] == "../raw/image 0.jpg"
    for text in ("", "files\n", "packed\n../raw/image 0.jpg\n", "\n".join(lines[:-1])):
        files.write_text(text)
        with pytest.raises(DataError, match=r"image_files.txt: expected 'packed', or 'files' and 6 lines. Prepare the"):
            Store(tmp_path / "files")
    files.write_text("packed\n")
    with pytest.raises(DataError, match=r"images.bin: 0 bytes, expected 29,250 bytes. Prepare the data set again"):
        Store(tmp_path / "files")
    files.unlink()
    with pytest.raises(DataError, match=r"image_files.txt: No such file or directory. Prepare the data set again"):
        Store(tmp_path / "files")
    (tmp_path / "packed/image_files.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"images.bin: 29,250 bytes, expected 0 bytes. Prepare the data set again"):
        Store(tmp_path / "packed")

import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deeplab.counts import gather, read_counts, write_counts
from deeplab.errors import DataError
from deeplab.metrics import score
from tests.faults import tried

K = 4

matrices = st.lists(arrays(np.int64, (K, K), elements=st.integers(0, 3)), min_size=1, max_size=5)


def counts_of(matrices):
    return gather(
        iter(matrices), [f"image {index}" for index in range(len(matrices))], [f"class {k}" for k in range(K)]
    )


@given(matrices=matrices)
def test_the_counts_are_the_matrices_of_the_images_and_add_up_to_their_sum(matrices):
    counts = counts_of(matrices)
    for index, matrix in enumerate(matrices):
        own = counts.image == index
        dense = np.zeros((K, K), np.int64)
        dense[counts.truth[own], counts.predicted[own]] = counts.pixels[own]
        np.testing.assert_array_equal(dense, matrix)
    np.testing.assert_array_equal(counts.matrix, sum(matrices))
    assert (counts.pixels > 0).all()


@given(matrices=matrices)
def test_intersection_and_union_of_each_image_give_the_iou_of_all(matrices):
    hits, union = (each.sum(axis=0) for each in counts_of(matrices).totals())
    if sum(matrices).any():
        expected = score(sum(matrices)).iou
        np.testing.assert_allclose(hits[union > 0] / union[union > 0], expected[np.isfinite(expected)])
        np.testing.assert_array_equal(union > 0, np.isfinite(expected))


@pytest.fixture
def counts():
    return counts_of(np.random.default_rng(0).integers(0, 2, (6, K, K)) * 70_000)


def test_a_file_gives_back_every_seed_and_protocol_in_order(tmp_path, counts):
    other = counts_of(np.ones((6, K, K), np.int64))
    write_counts(tmp_path / "new/cell.npz", {(1, "b"): counts, (0, "a"): other})
    found = read_counts(tmp_path / "new/cell.npz")
    assert list(found) == [(1, "b"), (0, "a")]
    for name in ("images", "classes", "image", "truth", "predicted", "pixels"):
        np.testing.assert_array_equal(getattr(found[1, "b"], name), getattr(counts, name))
        assert getattr(found[1, "b"], name).dtype == getattr(counts, name).dtype
        np.testing.assert_array_equal(getattr(found[0, "a"], name), getattr(other, name))
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/cell.npz"]


def test_equal_counts_are_equal_bytes_whenever_they_are_written(tmp_path, counts, monkeypatch):
    write_counts(tmp_path / "a.npz", {(0, "a"): counts})
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_counts(tmp_path / "b.npz", {(0, "a"): counts})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive"])
@tried.RESULTS
def test_a_file_that_is_no_counts_is_named(tmp_path, content):
    (tmp_path / "cell.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cell\.npz: not counts as evaluate writes them"):
        read_counts(tmp_path / "cell.npz")


@tried.RESULTS
def test_a_file_with_pickled_objects_or_without_a_column_is_refused(tmp_path, counts):
    path = tmp_path / "cell.npz"
    np.savez(path, images=np.array([{}], object), classes=counts.classes, **{"0/a/image": counts.image})
    with pytest.raises(DataError, match="not counts as evaluate writes them"):
        read_counts(path)
    with pytest.raises(DataError, match="no such file"):
        read_counts(tmp_path / "none.npz")


@tried.RESULTS
def test_a_column_whose_header_ends_too_soon_is_refused(tmp_path):
    header = b"{'descr': '<i4', 'shape': (3,"
    with zipfile.ZipFile(tmp_path / "cell.npz", "w") as archive:
        for name in ("images", "classes", "0/a/image"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(DataError, match="not counts as evaluate writes them"):
        read_counts(tmp_path / "cell.npz")

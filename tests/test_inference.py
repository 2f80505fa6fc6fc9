from dataclasses import replace
from itertools import pairwise, product

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deeplab import inference
from deeplab.config import Protocol
from deeplab.errors import DataError, NonFiniteError
from deeplab.inference import evaluate, predict, predict_batch, predict_tiles, starts
from deeplab.metrics import confusion_matrix
from deeplab.store import Store
from deeplab.store_writer import StoreWriter
from deeplab.transforms import fitted_size
from tests.tiny import recipe_config, tiny_cell

CELL = tiny_cell(recipe=recipe_config(resize=(96, 64)))
CPU = torch.device("cpu")
K = 19  # two full chunks of classes and a rest
WHOLE = Protocol(scales=(1.0,), flip=False, window=None, stride=None)


class Net(nn.Module):
    """A network of one convolution that keeps what it was given."""

    def __init__(self, kernel: int = 8, stride: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, K, kernel, stride, padding=kernel // 2)
        self.seen = []
        self.eval().requires_grad_(False)

    def forward(self, x):
        self.seen.append(x.clone())
        return self.convolution(x)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def test_an_image_is_resized_into_the_box_and_segmented_at_its_own_size(image):
    net = Net()
    labels = predict(net, image, CELL.inference, WHOLE, CPU)
    assert CELL.recipe.resize == (96, 64)  # 37x53 fits with its short side: 64 / 37
    resized = cv2.resize(image, (92, 64), interpolation=cv2.INTER_LINEAR)
    expected = (resized - np.array(CELL.model.mean)) / CELL.model.std
    np.testing.assert_allclose(net.seen[0][0].permute(1, 2, 0), expected, atol=1e-5)
    assert labels.shape == (37, 53)
    assert labels.dtype == np.uint8


def test_the_classes_equal_those_of_all_logits_upsampled_at_once(image):
    net = Net()
    labels = predict(net, image, CELL.inference, WHOLE, CPU)
    logits = F.interpolate(net(net.seen[0]), size=(37, 53), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(labels, logits.argmax(dim=1)[0])
    assert len(np.unique(labels)) > 8


def test_eight_classes_are_upsampled_at_once_at_most(image, monkeypatch):
    classes = []
    upsample = inference.upsample

    def counted(logits, height, width):
        classes.append(logits.shape[1])
        return upsample(logits, height, width)

    monkeypatch.setattr(inference, "upsample", counted)
    predict(Net(), image, CELL.inference, WHOLE, CPU)
    assert classes == [8, 8, 3]


def test_a_huge_image_is_upsampled_a_class_at_a_time(image, monkeypatch):
    expected = predict(Net(), image, CELL.inference, replace(WHOLE, flip=True), CPU)
    monkeypatch.setattr(inference, "MOST_AT_ONCE", 37 * 53)
    np.testing.assert_array_equal(predict(Net(), image, CELL.inference, replace(WHOLE, flip=True), CPU), expected)


@pytest.mark.parametrize(
    "protocol",
    [WHOLE, replace(WHOLE, flip=True, scales=(0.5, 1.0)), replace(WHOLE, window=(40, 48), stride=(24, 32))],
    ids=["whole", "scales and flip", "window"],
)
def test_a_batch_gives_what_its_images_give_one_by_one(protocol):
    images = np.random.default_rng(1).integers(0, 256, (3, 37, 53, 3), dtype=np.uint8)
    together = predict_batch(Net(), images, CELL.inference, protocol, CPU)
    alone = [predict(Net(), image, CELL.inference, protocol, CPU) for image in images]
    assert (together == np.stack(alone)).mean() > 0.999  # all but ties
    assert (together[0] != together[1]).any()


def test_tiles_at_the_image_s_own_scale_meet_in_the_middle_of_their_overlap(image):
    net = Net(kernel=1, stride=1)  # a pixel's class does not depend on its window
    tiles = predict_tiles(net, image, CELL.inference, (16, 20), (12, 10), CPU)
    rows, columns = (0, 12, 21), (0, 10, 20, 30, 33)
    assert [tuple(x.shape) for x in net.seen] == [(1, 3, 16, 20)] * 15
    native = replace(CELL.inference, resize=(53, 37))
    np.testing.assert_array_equal(tiles, predict(net, image, native, WHOLE, CPU))

    class Counting(nn.Module):
        """Each window is a class of its own."""

        calls = -1

        def forward(self, x):
            self.calls += 1
            return torch.eye(K)[self.calls][None, :, None, None].expand(1, K, *x.shape[2:])

    owner = predict_tiles(Counting().eval(), image, CELL.inference, (16, 20), (12, 10), CPU)
    edges = [
        [0, *(b + (a + size - b) // 2 for a, b in pairwise(places))] for places, size in ((rows, 16), (columns, 20))
    ]
    for y, x in ((0, 0), (20, 31), (36, 52)):
        row, column = (sum(edge <= at for edge in axis) - 1 for axis, at in zip(edges, (y, x), strict=True))
        assert owner[y, x] == row * len(columns) + column


def test_scales_and_flips_average_the_probabilities(image):
    protocol = replace(WHOLE, scales=(0.5, 1.0, 1.75), flip=True)
    net = Net()
    labels = predict(net, image, CELL.inference, protocol, CPU)
    assert [tuple(x.shape[2:]) for x in net.seen] == [
        fitted_size(37, 53, (96, 64), scale) for scale in protocol.scales for _ in range(2)
    ]
    mean = 0
    for place, x in enumerate(list(net.seen)):
        logits = F.interpolate(net(x), size=(37, 53), mode="bilinear", align_corners=False)
        mean = mean + (logits.flip(-1) if place % 2 else logits).softmax(dim=1)[0]
    first, second = mean.topk(2, dim=0).values
    clear = (first - second > 1e-5).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], mean.argmax(dim=0).numpy()[clear])


def test_with_flips_a_mirrored_image_gives_the_mirrored_classes(image):
    protocol = replace(WHOLE, flip=True)
    mirrored = predict(Net(), np.ascontiguousarray(image[:, ::-1]), CELL.inference, protocol, CPU)
    same = mirrored[:, ::-1] == predict(Net(), image, CELL.inference, protocol, CPU)
    assert same.mean() > 0.99  # all but ties
    assert (predict(Net(), image, CELL.inference, WHOLE, CPU) != mirrored[:, ::-1]).any()


def test_overlapping_windows_average_their_logits(image):
    class Relative(Net):
        def forward(self, x):
            return super().forward(x - x.mean())  # so that a pixel's logits depend on its window

    net = Relative()
    labels = predict(net, image, CELL.inference, replace(WHOLE, window=(40, 48), stride=(24, 32)), CPU)
    windows = [x.clone() for x in net.seen]
    places = list(product((0, 24), (0, 32, 44)))  # the image is 64x92; the last column of windows ends with it
    total, count = torch.zeros(1, K, 64, 92), torch.zeros(64, 92)
    net.seen.clear()
    predict(net, image, CELL.inference, WHOLE, CPU)
    whole = net.seen[0]  # less its own mean, as each window is less its own
    for window, (top, left) in zip(windows, places, strict=True):
        part = whole[:, :, top : top + 40, left : left + 48]
        torch.testing.assert_close(window, part - part.mean(), atol=1e-5, rtol=0)
        logits = F.interpolate(net.convolution(window), size=(40, 48), mode="bilinear", align_corners=False)
        total[:, :, top : top + 40, left : left + 48] += logits
        count[top : top + 40, left : left + 48] += 1
    expected = F.interpolate(total / count, size=(37, 53), mode="bilinear", align_corners=False).argmax(dim=1)[0]
    np.testing.assert_array_equal(labels, expected)


def test_a_window_larger_than_the_image_is_the_whole_image(image):
    net = Net(kernel=1, stride=1)
    window = predict(net, image, CELL.inference, replace(WHOLE, window=(128, 128), stride=(85, 85)), CPU)
    np.testing.assert_array_equal(window, predict(net, image, CELL.inference, WHOLE, CPU))
    assert [tuple(x.shape) for x in net.seen] == [(1, 3, 64, 92)] * 2


@given(length=st.integers(1, 60), window=st.integers(1, 20), data=st.data())
def test_windows_cover_an_image_and_stay_inside(length, window, data):
    stride = data.draw(st.integers(1, window))
    places = starts(length, window, stride)
    covered = {pixel for start in places for pixel in range(start, start + window)}
    assert covered >= set(range(length))
    assert max(covered) == max(length, window) - 1
    assert len(set(places)) == len(places)


def test_windows_that_leave_gaps_are_refused():
    with pytest.raises(ValueError, match=r"stride: got \[10, 21\], expected at most the window, \[20, 20\]"):
        replace(WHOLE, window=(20, 20), stride=(10, 21))


def test_half_precision_runs_under_autocast(image):
    kinds = []
    net = Net()
    net.convolution.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    for precision in ("fp32", "bf16"):
        predict(net, image, replace(CELL.inference, precision=precision), WHOLE, CPU)
    assert kinds == [torch.float32, torch.bfloat16]


def at_own_scale(height, width, *, align):
    """Settings under which an image of this size is not resized."""
    model, box = replace(CELL.model, output_stride=16), (max(height, width), min(height, width))
    return replace(CELL.inference, model=model, resize=box, align=align)


def features_move(image, height, width, *, align):
    """Whether the classes of a corner of `image` differ from those of the same pixels in all of it."""
    net = Net(kernel=16, stride=16)
    net.convolution.padding = (0, 0)
    whole = predict(net, image, at_own_scale(*image.shape[:2], align=align), WHOLE, CPU)
    part = predict(net, image[:height, :width], at_own_scale(height, width, align=align), WHOLE, CPU)
    inside = slice(0, height - 32), slice(0, width - 32)  # further on, the network sees other pixels
    return bool((part[inside] != whole[inside]).any())


@given(st.integers(50, 120), st.integers(50, 120))
def test_aligned_features_stay_where_they_are_at_any_size(height, width):
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not features_move(image, height, width, align=True)


def test_without_alignment_they_move_with_the_size():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert features_move(image, 100, 120, align=False)
    assert not features_move(image, 112, 96, align=False)  # multiples of 16


@pytest.mark.parametrize("protocol", [replace(WHOLE, align=True), replace(WHOLE, align=True, flip=True)])
def test_alignment_changes_nothing_where_sides_are_multiples(protocol):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    net, settings = Net(), at_own_scale(64, 96, align=False)
    expected = predict(net, image, settings, replace(protocol, align=False), CPU)
    np.testing.assert_array_equal(predict(net, image, settings, protocol, CPU), expected)


def test_with_flips_and_alignment_a_mirrored_image_gives_the_mirrored_classes(image):
    net, protocol = Net(), replace(WHOLE, align=True, flip=True)
    labels = predict(net, image, CELL.inference, protocol, CPU)
    mirrored = predict(net, image[:, ::-1].copy(), CELL.inference, protocol, CPU)
    assert (mirrored[:, ::-1] == labels).mean() > 0.999


def test_broken_weights_are_an_error_and_not_class_0(image):
    net = Net()
    nn.init.constant_(net.convolution.bias, float("nan"))
    with pytest.raises(NonFiniteError, match="the network's logits are NaN or infinite: its weights are damaged"):
        predict(net, image, CELL.inference, WHOLE, CPU)


def test_a_split_is_evaluated_image_by_image_at_their_own_sizes(tmp_path):
    net = Net().train()
    with StoreWriter(tmp_path, ("a",) * K, ((0, 0, 0),) * K) as writer:
        for name, size in (("first", (20, 30)), ("second", (41, 17))):
            rng = np.random.default_rng(len(name))
            mask = rng.choice([*range(K), 255], size).astype(np.uint8)
            writer.add("val", name, rng.integers(0, 256, (*size, 3), dtype=np.uint8), mask)
    split = Store(tmp_path).split("val")
    done = []
    matrix = evaluate(
        net, split, K, CELL.inference, WHOLE, CPU, progress=lambda indices: done.append(indices) or indices
    )
    assert net.training
    net.eval()
    predicted = [predict(net, split.image(index), CELL.inference, WHOLE, CPU) for index in range(2)]
    expected = sum(confusion_matrix(split.mask(index), predicted[index], K) for index in range(2))
    np.testing.assert_array_equal(matrix, expected)
    assert done == [range(2)]


def test_a_label_out_of_range_is_told_with_its_image(tmp_path):
    with StoreWriter(tmp_path / "store", ("a",) * 30, ((0, 0, 0),) * 30) as writer:
        writer.add("val", "broken", np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 29, np.uint8))
    with pytest.raises(DataError, match=r"store: image broken: label 29 at row 0, column 0: expected 0\.\.18"):
        evaluate(Net(), Store(tmp_path / "store").split("val"), K, CELL.inference, WHOLE, CPU)

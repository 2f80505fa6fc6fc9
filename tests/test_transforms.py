import colorsys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from deeplab import transforms
from deeplab.augmentations.photometric import (
    CONTRAST_AFTER,
    CONTRAST_BEFORE,
    NO_DISTORTION,
    distort,
    draw_distortion,
)
from deeplab.data import random_stream
from deeplab.transforms import (
    Region,
    clear_padding,
    cut,
    draw_crop,
    draw_region,
    fitted_size,
    largest_share,
    normalise,
    one_class_covers,
    take_nearest,
)
from tests.tiny import augment_config, recipe_config

sizes = st.integers(1, 700)


@pytest.mark.parametrize(
    ("size", "box", "scale", "expected"),
    [
        ((375, 500), (2048, 512), 1.0, (512, 683)),  # VOC: the short side decides
        ((375, 500), (2048, 512), 0.5, (256, 341)),
        ((1024, 2048), (2048, 1024), 2.0, (2048, 4096)),  # Cityscapes
        ((100, 1000), (2048, 512), 1.0, (205, 2048)),  # a panorama: the long side decides
    ],
)
def test_an_image_is_fitted_into_the_box_with_its_aspect_kept(size, box, scale, expected):
    assert fitted_size(*size, box, scale) == expected


@given(sizes, sizes, sizes, sizes, st.integers(0, 2**32))
def test_a_crop_lies_inside_its_source_and_is_never_empty(height, width, resized_height, resized_width, seed):
    region = draw_crop(np.random.default_rng(seed), (height, width), (resized_height, resized_width), (64, 96))
    assert 0 <= region.top < region.bottom <= height
    assert 0 <= region.left < region.right <= width
    assert (region.height, region.width) == (min(64, resized_height), min(96, resized_width))


def test_crops_start_everywhere_with_equal_probability():
    rng = np.random.default_rng(0)
    tops = [draw_crop(rng, (110, 10), (110, 10), (101, 10)).top for _ in range(5000)]
    counts = np.bincount(tops, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 400  # 500 expected, standard deviation 21


def test_image_and_mask_share_one_geometry():
    """Cut the same picture once as an image and once as a mask: every pixel shows the same place."""
    rows, columns = np.meshgrid(np.arange(120), np.arange(160), indexing="ij")
    mask = (rows // 10 * 16 + columns // 10).astype(np.uint8)
    image = np.stack([mask] * 3, axis=-1)
    for index in range(50):
        region = draw_region(random_stream(0, 1, 0, index), mask, recipe_config(resize=(200, 150)), augment_config())
        as_mask = cut(mask, region, cv2.INTER_NEAREST)
        as_image = cut(image, region, cv2.INTER_NEAREST)
        np.testing.assert_array_equal(as_image[..., 0], as_mask)


@pytest.mark.parametrize("size", [(375, 500), (333, 500), (1024, 2048)])
def test_the_fused_crop_is_within_three_quarters_of_a_pixel_of_resize_then_crop(size):
    """On a picture whose grey level is its column, a shift is read off as a difference in grey levels."""
    ramp = np.tile(np.linspace(0, 1, size[1], dtype=np.float32), (size[0], 1))
    rng = np.random.default_rng(0)
    for _ in range(20):
        resized = fitted_size(*size, (2048, 512), rng.uniform(0.5, 2.0))
        region = draw_crop(rng, size, resized, (256, 256))
        part = ramp[region.top : region.bottom, region.left : region.right]
        fused = cv2.resize(part, (region.width, region.height), interpolation=cv2.INTER_LINEAR)
        whole = cv2.resize(ramp, resized[::-1], interpolation=cv2.INTER_LINEAR)
        start = np.abs(whole[0][: resized[1] - region.width + 1] - fused[0, 0]).argmin()
        starts = range(max(0, start - 3), min(resized[1] - region.width, start + 3) + 1)
        shift = min(np.abs(whole[0, s : s + region.width] - fused[0])[2:-2].max() for s in starts) * (size[1] - 1)
        assert shift < 0.75  # in source pixels: half a pixel from rounding each edge, and a stretch between them


def test_a_crop_that_one_class_fills_is_drawn_again():
    """Nine tenths of the picture are one class: a single try would mostly land there."""
    mask = np.zeros((60, 600), dtype=np.uint8)
    mask[:, 540:] = np.arange(60)[:, None] % 5
    recipe = recipe_config(crop=(30, 30), resize=(600, 60))
    once, often = augment_config(crop_tries=1, scale=(1.0, 1.0)), augment_config(crop_tries=10, scale=(1.0, 1.0))

    def filled(augment):
        regions = [draw_region(random_stream(0, 1, 0, index), mask, recipe, augment) for index in range(200)]
        return np.mean([largest_share(cut(mask, region, cv2.INTER_NEAREST)) >= 0.75 for region in regions])

    assert filled(once) > 0.8
    assert filled(often) < 0.6


def test_ignored_pixels_do_not_count_for_the_largest_class():
    assert largest_share(np.array([[255, 255, 255, 1]], dtype=np.uint8)) == 1.0
    assert largest_share(np.array([[255, 255, 0, 1]], dtype=np.uint8)) == 0.5
    assert largest_share(np.full((2, 2), 255, dtype=np.uint8)) == 0.0


def test_distortions_follow_the_recipe():
    augment = augment_config()
    drawn = np.stack([draw_distortion(random_stream(0, 1, 0, index), augment) for index in range(4000)])
    changed = (drawn != np.float32(NO_DISTORTION)).mean(axis=0)
    np.testing.assert_allclose(changed, [0.5, 0.25, 0.5, 0.5, 0.25], atol=0.03)
    assert (drawn[:, 1] == 1).sum() + (drawn[:, 4] == 1).sum() >= 4000  # contrast comes once at most
    for column, (low, high) in enumerate([(-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18), (0.5, 1.5)]):
        values = drawn[:, column][drawn[:, column] != np.float32(NO_DISTORTION)[column]]
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.03 * (high - low))


def test_what_is_drawn_is_uniform_over_its_range():
    """Kolmogorov-Smirnov against the recipe's distributions."""
    augment, recipe = augment_config(max_class_share=1.0), recipe_config(crop=(900, 900), resize=(300, 300))
    mask = np.zeros((300, 300), dtype=np.uint8)
    scales = [draw_region(random_stream(0, 1, 1, i), mask, recipe, augment).height / 300 for i in range(3000)]
    assert kstest(scales, "uniform", (0.5, 1.5)).pvalue > 0.01
    drawn = np.stack([draw_distortion(random_stream(0, 1, 2, i), augment) for i in range(6000)])
    for column, (low, high) in enumerate([(-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18), (0.5, 1.5)]):
        values = drawn[:, column][drawn[:, column] != np.float32(NO_DISTORTION)[column]]
        assert kstest(values, "uniform", (low, high - low)).pvalue > 0.01


def test_the_colour_changes_are_drawn_independently():
    """As in mmsegmentation, where each has a coin of its own and contrast's place a fifth."""
    drawn = np.stack([draw_distortion(random_stream(0, 1, 3, i), augment_config()) for i in range(8000)])
    changed = (drawn != np.float32(NO_DISTORTION)).astype(float)
    changed[:, CONTRAST_BEFORE] += changed[:, CONTRAST_AFTER]
    correlations = np.corrcoef(changed[:, :4].T) - np.eye(4)
    assert np.abs(correlations).max() < 0.04  # 1 / sqrt(8000) is 0.011
    always = np.stack(
        [draw_distortion(random_stream(0, 1, 4, i), augment_config(photometric=1.0)) for i in range(4000)]
    )
    assert 0.475 < (always[:, CONTRAST_AFTER] != 1).mean() < 0.525


@pytest.mark.parametrize(("tries", "share"), [(10, 0.75), (3, 0.75), (10, 1.0)])
def test_a_crop_is_tried_as_often_as_the_recipe_says_and_the_last_one_stands(tries, share, monkeypatch):
    """One class everywhere: no try is ever good enough."""
    regions = []
    original = transforms.draw_crop
    monkeypatch.setattr(transforms, "draw_crop", lambda *a: (regions.append(original(*a)), regions[-1])[1])
    mask = np.zeros((100, 300), dtype=np.uint8)
    augment = augment_config(crop_tries=tries, max_class_share=share)
    stands = draw_region(random_stream(0, 1, 0, 0), mask, recipe_config(resize=(300, 100)), augment)
    assert len(regions) == (1 if share == 1 else tries)
    assert stands == regions[-1]


@given(
    masks=st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda size: st.lists(
            st.sampled_from([0, 0, 0, 1, 2, 255]), min_size=size[0] * size[1], max_size=size[0] * size[1]
        ).map(lambda values: np.array(values, dtype=np.uint8).reshape(size))
    ),
    share=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75, 0.9]),
)
def test_the_quick_look_at_a_crop_decides_as_counting_all_classes_does(masks, share):
    assert one_class_covers(masks, share) == (largest_share(masks) >= share)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_quick_look_is_exact_at_the_limit_and_where_its_guess_is_wrong(share):
    mask = np.arange(64, dtype=np.uint8).repeat(64).reshape(64, 64) % 7 + 1
    mask[::16, ::16] = 0  # all that is looked at
    for covered in range(int(share * 4096) - 3, int(share * 4096) + 4):
        trial = mask.copy()
        trial.reshape(-1)[np.flatnonzero(mask)[:covered]] = 9
        assert one_class_covers(trial, share) == (largest_share(trial) >= share) == (covered >= share * 4096)


def test_a_part_is_written_in_place_and_nowhere_else():
    source = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    region = Region(3, 30, 5, 44, 21, 17)
    out = np.full((25, 30, 3), 7, dtype=np.uint8)
    corner = cut(source, region, cv2.INTER_LINEAR, out)
    assert np.shares_memory(corner, out)
    np.testing.assert_array_equal(out[:21, :17], cut(source, region, cv2.INTER_LINEAR))
    assert (out[21:] == 7).all()
    assert (out[:, 17:] == 7).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(0, 5))
def test_a_mask_is_resized_as_opencv_does(height, width, resized_height, resized_width, margin):
    mask = np.random.default_rng(height).integers(0, 256, (height + margin, width + margin), dtype=np.uint8)
    part = mask[margin:, margin:]
    out = np.full((resized_height, resized_width + margin), 7, dtype=np.uint8)
    take_nearest(part, out[:, :resized_width])
    expected = cv2.resize(part, (resized_width, resized_height), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(out[:, :resized_width], expected)
    assert (out[:, resized_width:] == 7).all()


def test_no_distortion_leaves_an_image_alone():
    images = torch.rand(2, 3, 9, 7) * 255
    torch.testing.assert_close(distort(images, torch.tensor([NO_DISTORTION] * 2)), images, rtol=0, atol=1e-3)


@given(st.tuples(*[st.integers(0, 255)] * 3), st.floats(-18, 18), st.floats(0.5, 1.5))
def test_hue_and_saturation_agree_with_the_standard_library(colour, hue, saturation):
    h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in colour))
    expected = colorsys.hsv_to_rgb((h + hue / 180) % 1, min(1.0, s * saturation), v)
    image = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1)
    ours = distort(image, torch.tensor([[0.0, 1.0, saturation, hue, 1.0]])).flatten() / 255
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=0, atol=1e-4)


def test_brightness_and_contrast_stay_in_range():
    images = torch.tensor([0.0, 100.0, 250.0]).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    brighter, stronger = distort(images, torch.tensor([[32.0, 1, 1, 0, 1], [0, 1, 1, 0, 1.5]]))
    torch.testing.assert_close(brighter.flatten(), torch.tensor([32.0, 132.0, 255.0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(stronger.flatten(), torch.tensor([0.0, 150.0, 255.0]), rtol=0, atol=1e-3)


def test_normalising_takes_off_the_mean_and_divides_by_the_deviation():
    images = torch.full((1, 3, 1, 1), 100.0)
    torch.testing.assert_close(normalise(images, (90, 100, 110), (10, 5, 2)).flatten(), torch.tensor([1.0, 0.0, -5.0]))


def test_padding_is_zero_after_normalising():
    cleared = clear_padding(torch.ones(2, 3, 4, 5), torch.tensor([[4, 5], [2, 3]]))
    assert cleared[0].eq(1).all()
    assert cleared[1, :, :2, :3].eq(1).all()
    assert cleared[1].sum() == 3 * 2 * 3

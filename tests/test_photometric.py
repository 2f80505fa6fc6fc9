"""The compiled colours of the CPU, compared with the plain ones."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeplab.augmentations.photometric import NO_DISTORTION, distort, draw_distortion
from deeplab.augmentations.photometric_on_cpu import compiled_now, distort_and_normalise
from deeplab.data import random_stream
from deeplab.transforms import clear_padding, normalise
from tests.tiny import augment_config

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


def compiled(image, distortion, size=None):
    out = np.full(image.shape, 9, dtype=np.float32)
    distort_and_normalise(image, size or image.shape[:2], np.float32(distortion), MEAN, STD, out)
    return out


def plain(image, distortion, size=None, dtype=torch.float32):
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].to(dtype)
    changed = normalise(distort(planes, torch.from_numpy(np.float32(distortion))[None].to(dtype)), MEAN, STD)
    return clear_padding(changed, torch.tensor([size or image.shape[:2]]))[0].permute(1, 2, 0).numpy()


def picture(seed, height, width):
    """Any colours, then dark ones, and on the lower left greys."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 3] //= 60
    image[height // 2 :, : width // 2] = image[height // 2 :, : width // 2, :1]
    return image


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (64, 50), (65, 31), (200, 97)])
@pytest.mark.parametrize("seed", range(12))
def test_the_cpu_colours_are_those_of_the_device_to_a_thousandth_of_a_grey_level(size, seed):
    image = picture(seed, size[0] + 2, size[1] + 3)
    distortion = draw_distortion(random_stream(seed, 1, 0, 0), augment_config(photometric=0.8))
    np.testing.assert_allclose(
        compiled(image, distortion, size), plain(image, distortion, size), rtol=0, atol=0.001 / max(STD)
    )


@given(st.integers(0, 2**32))
def test_rounding_moves_no_colour_by_a_thousandth_of_a_grey_level(seed):
    image = picture(seed, 24, 40)
    distortion = draw_distortion(random_stream(seed, 1, 0, 0), augment_config(photometric=1.0))
    difference = np.abs(compiled(image, distortion) - plain(image, distortion, dtype=torch.float64))
    assert (difference * STD).max() < 0.001


@pytest.mark.parametrize("hue", [-90, -60, -30, -1e-7, 30, 60, 90])
def test_pure_colours_and_greys_are_right_at_the_edges_of_the_sectors(hue):
    image = np.array(np.meshgrid(*[(0, 1, 128, 255)] * 3), dtype=np.uint8).reshape(3, 8, 8).transpose(1, 2, 0).copy()
    distortion = (0, 1, 1.5, hue, 1)
    np.testing.assert_allclose(compiled(image, distortion), plain(image, distortion), rtol=0, atol=0.001 / max(STD))


@pytest.mark.parametrize("distortion", [NO_DISTORTION, (9, 0.8, 1.3, 0, 1), (-9, 1, 0.7, 11, 1.2)])
def test_a_pixel_gets_the_same_bits_wherever_it_lies(distortion):
    image = picture(0, 9, 67)
    whole = compiled(image, distortion)
    np.testing.assert_array_equal(compiled(image[:, ::-1].copy(), distortion), whole[:, ::-1])
    for width in range(1, 20):
        np.testing.assert_array_equal(compiled(image[:, 3 : 3 + width].copy(), distortion), whole[:, 3 : 3 + width])


def test_memory_that_would_have_to_be_copied_is_refused():
    image, out = np.zeros((4, 6, 3), dtype=np.uint8), np.zeros((4, 8, 3), dtype=np.float32)
    with pytest.raises(TypeError, match="No matching definition"):
        distort_and_normalise(image, (4, 6), np.float32(NO_DISTORTION), MEAN, STD, out[:, :6])


def test_without_a_place_for_the_cache_the_code_is_compiled_all_the_same():
    scope = {}
    exec("def double(x): return 2 * x", scope)  # has no file, and so no folder beside it
    assert compiled_now("int64(int64)")(scope["double"])(21) == 42


def test_training_on_a_gpu_does_not_wait_for_the_compiler():
    code = "import sys, deeplab.training, pipeline.stages.train; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)

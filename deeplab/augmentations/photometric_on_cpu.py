"""Photometric distortion and normalisation of a sample on the CPU: one pass over its pixels, compiled by numba.

The reference is `distort` in photometric.py with `normalise` in transforms.py; tests compare this file with it. The
colours of a pixel are changed in registers: no image in HSV is ever stored, and rows are written as the network takes
them. The code has the form with which the compiler works on eight pixels at once: conditional expressions instead of
branches, flat rows, and unsigned indices, because a signed one could count from the end. Float operations are neither
reordered nor fused, so a pixel gets the same bits wherever it is, and on any processor.

Import it only where a CPU trains: that takes over half a second, and two when no compiled code is cached.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deeplab.store import Bytes

ZERO, ONE, TWO, THREE, FOUR, SIX, TOP, TINY = (np.float32(value) for value in (0, 1, 2, 3, 4, 6, 255, 1e-6))
FIRST, SECOND, PIXEL = (np.uintp(value) for value in (1, 2, 3))  # offsets of green and blue, and the length of a pixel
KERNEL = "void(uint8[:, ::1], float32[:, ::1], uintp, uintp, UniTuple(float32, 5), float32[::1], float32[::1])"

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile by numba, for calls from compiled code."""
    dispatcher: Any = njit(error_model="numpy")(function)
    return cast(Function, dispatcher)


def compiled_now(signature: str) -> Callable[[Function], Function]:
    """Compile by numba for these types, with the cache in __pycache__ or in the user's cache folder.

    Where neither can be written, each process compiles again.
    """

    def compile_now(function: Function) -> Function:
        try:
            dispatcher: Any = njit(signature, error_model="numpy", nogil=True, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            dispatcher = njit(signature, error_model="numpy", nogil=True)(function)
        return cast(Function, dispatcher)

    return compile_now


def distort_and_normalise(
    image: Bytes,
    size: tuple[int, int],
    distortion: NDArray[np.float32],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    out: NDArray[np.float32],
) -> None:
    """Write normalise(distort(image)) into `out`, and 0 outside of `size` (height, width).

    `image` and `out` are (H, W, 3) and contiguous, `distortion` is (5,). Within the recipe's ranges, double
    precision gives the same to a thousandth of a grey level. TypeError or ValueError for other layouts.
    """
    height, width = size
    brightness, contrast_before, saturation, hue, contrast_after = distortion
    turn = np.float32(hue / 30 % 6)  # in sixths of the circle
    changes = (brightness, contrast_before, saturation, turn, contrast_after)
    scale, offset = (np.array(values, np.float32) for values in (1 / np.array(std), -np.array(mean) / std))
    source, target = image.reshape(len(image), -1, copy=False), out.reshape(len(out), -1, copy=False)
    distort_rows(source, target, height, width, changes, scale, offset)
    out[height:] = 0
    out[:height, width:] = 0


@compiled
def lower(one: np.float32, other: np.float32) -> np.float32:
    return one if one < other else other


@compiled
def higher(one: np.float32, other: np.float32) -> np.float32:
    return one if one > other else other


@compiled
def share(value: np.float32) -> np.float32:
    return lower(higher(value, ZERO), ONE)


@compiled
def lit(level: np.uint8, brightness: np.float32, contrast: np.float32) -> np.float32:
    """Brightness, and the contrast that comes before saturation and hue."""
    return lower(lower(higher(np.float32(level) + brightness, ZERO), TOP) * contrast, TOP)


Colour = tuple[np.float32, np.float32, np.float32]


@compiled
def keep(red: np.float32, green: np.float32, blue: np.float32, _saturation: np.float32, _turn: np.float32) -> Colour:
    return red, green, blue


@compiled
def saturate(red: np.float32, green: np.float32, blue: np.float32, saturation: np.float32, _turn: np.float32) -> Colour:
    """The distance of each channel to the brightest one grows by the factor, until the darkest is 0."""
    value = higher(higher(red, green), blue)
    chroma = value - lower(lower(red, green), blue)
    factor = lower(saturation, value / higher(chroma, TINY))
    return value - (value - red) * factor, value - (value - green) * factor, value - (value - blue) * factor


@compiled
def saturate_and_turn(
    red: np.float32, green: np.float32, blue: np.float32, saturation: np.float32, turn: np.float32
) -> Colour:
    """`turn_colours` of photometric.py for one pixel; `turn` in 0..6."""
    value = higher(higher(red, green), blue)
    chroma = value - lower(lower(red, green), blue)
    strength = lower(chroma * saturation, value)
    away = green - blue if red == value else (blue - red if green == value else red - green)
    base = turn if red == value else (turn + TWO if green == value else turn + FOUR)
    sector = base + away / higher(chroma, TINY)  # -1..11, and below 0..6
    sector = sector + SIX if sector < ZERO else sector
    sector = sector - SIX if sector > SIX else sector
    return (
        value - strength * share(TWO - abs(sector - THREE)),
        value - strength * share(abs(sector - TWO) - ONE),
        value - strength * share(abs(sector - FOUR) - ONE),
    )


def row_of(change: Callable[..., Colour]) -> Callable[..., None]:
    """The loop over a row, with `change` between brightness and contrast."""

    @compiled
    def row(
        source: NDArray[np.uint8],
        target: NDArray[np.float32],
        width: int,
        changes: tuple[np.float32, ...],
        scale: NDArray[np.float32],
        offset: NDArray[np.float32],
    ) -> None:
        brightness, contrast_before, saturation, turn, contrast_after = changes
        scale_red, scale_green, scale_blue = scale[0], scale[1], scale[2]
        offset_red, offset_green, offset_blue = offset[0], offset[1], offset[2]
        for x in range(width):
            r = PIXEL * x
            g, b = r + FIRST, r + SECOND
            red = lit(source[r], brightness, contrast_before)
            green = lit(source[g], brightness, contrast_before)
            blue = lit(source[b], brightness, contrast_before)
            red, green, blue = change(red, green, blue, saturation, turn)
            target[r] = lower(red * contrast_after, TOP) * scale_red + offset_red
            target[g] = lower(green * contrast_after, TOP) * scale_green + offset_green
            target[b] = lower(blue * contrast_after, TOP) * scale_blue + offset_blue

    return row


kept_row, saturated_row, turned_row = row_of(keep), row_of(saturate), row_of(saturate_and_turn)


@compiled_now(KERNEL)
def distort_rows(
    image: NDArray[np.uint8],
    out: NDArray[np.float32],
    height: int,
    width: int,
    changes: tuple[np.float32, ...],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
) -> None:
    """Flat rows (H, 3 W) in, flat rows out; of these, `width` pixels are written in each of `height` rows."""
    for y in range(height):
        if changes[3] != ZERO:
            turned_row(image[y], out[y], width, changes, scale, offset)
        elif changes[2] != ONE:
            saturated_row(image[y], out[y], width, changes, scale, offset)
        else:
            kept_row(image[y], out[y], width, changes, scale, offset)

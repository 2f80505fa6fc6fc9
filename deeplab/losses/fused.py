"""Cross-entropy at the resolution of the masks as one Triton kernel, which reads logits and writes gradients once.

The logits of a pixel are interpolated from those of four small pixels. A *patch* is the area between these four. One
program of the kernel computes all pixels of a patch: it reads the four once, and adds up the gradient of each of the
four in registers. So no upsampled logit is written to memory. Without atomics, the bits are the same each time.

Importing this module raises ImportError without Triton, which comes with torch for NVIDIA GPUs on Linux.
"""

from subprocess import SubprocessError

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from deeplab.losses.chunks import interpolation
from deeplab.store import IGNORE

# What a machine that cannot compile or start the kernel raises, say without a C compiler.
ERRORS = (triton.TritonError, RuntimeError, OSError, SubprocessError)
TILE = 256  # upsampled logits that a program has at once, in 8 registers of each thread of its one warp
COLUMNS_AT_MOST = 8
IGNORED = tl.constexpr(IGNORE)
LOWEST = tl.constexpr(-1e30)  # the logit of a class that only fills the tile; 0 times infinity would be NaN


def in_one_pass(small: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy summed over the valid pixels, and its gradient.

    fp32 logits (N, h, w, K) and uint8 masks (N, H, W) with 255 ignored -> scalar, (N, h, w, K). A label that is not
    below K makes the sum NaN.
    """
    samples, height, width, classes = small.shape
    patches = (samples, height + 1, width + 1)  # with those between the outermost small pixels and the border
    totals, corners = small.new_empty(patches), small.new_empty(4, *patches, classes)
    padded = triton.next_power_of_2(classes)
    columns = triton.next_power_of_2(-(-masks.shape[2] // width))  # of a patch
    cross_entropy_of_patch[(totals.numel(),)](
        (small.contiguous(), masks.contiguous()),
        taps(masks.shape[1], height, small),
        taps(masks.shape[2], width, small),
        (totals, corners),
        (height, width, masks.shape[1], masks.shape[2], classes),
        min(columns, COLUMNS_AT_MOST, max(1, TILE // padded)),
        padded,
        num_warps=1,
        enable_fp_fusion=True,
    )
    upper_left, upper_right, lower_left, lower_right = corners
    gradient = upper_left[:, 1:, 1:] + upper_right[:, 1:, :-1] + lower_left[:, :-1, 1:] + lower_right[:, :-1, :-1]
    return totals.sum(), gradient


def taps(size: int, small: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix of `interpolation` by its numbers that are not 0, for `size` pixels in small + 1 patches.

    Returns the first pixel of each patch and the end of the last, int64 (small + 2,), and for each pixel the weights of
    the small pixels before and after it, (size, 2), in the type of `like`. One beyond the border has the weight 0.
    """
    pixels = torch.arange(size, device=like.device)
    patch = ((2 * pixels + 1) * small + size) // (2 * size)  # the place among the small pixels, rounded up; exact
    firsts = torch.searchsorted(patch, torch.arange(small + 2, device=like.device))
    weights = F.pad(interpolation(size, small, like), (1, 1))
    return firsts, weights.gather(1, torch.stack([patch, patch + 1], dim=1))


@triton.jit  # type: ignore[untyped-decorator]
def cross_entropy_of_patch(given, rows, columns, results, sizes, block_x: tl.constexpr, block_k: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum over the pixels of one patch, and their gradient for its four small pixels.

    given: logits and masks. rows, columns: their `taps`. results: a sum and four gradients per patch. sizes: h, w, H,
    W, K. A program has `block_x` pixels of a row at once, and all their classes, of which there are up to `block_k`.
    """
    small, masks = given
    row_firsts, row_weights = rows
    column_firsts, column_weights = columns
    totals, corners = results
    h, w, height, width, classes = sizes
    patches, patch = tl.num_programs(0).to(tl.int64), tl.program_id(0).to(tl.int64)
    n, i, j = patch // ((h + 1) * (w + 1)), patch // (w + 1) % (h + 1), patch % (w + 1)
    above, below = (n * h + tl.maximum(i - 1, 0)) * w, (n * h + tl.minimum(i, h - 1)) * w
    before, after = tl.maximum(j - 1, 0), tl.minimum(j, w - 1)
    k = tl.arange(0, block_k)
    real = k < classes
    upper_left = tl.load(small + (above + before) * classes + k, mask=real, other=LOWEST)[None, :]
    upper_right = tl.load(small + (above + after) * classes + k, mask=real, other=LOWEST)[None, :]
    lower_left = tl.load(small + (below + before) * classes + k, mask=real, other=LOWEST)[None, :]
    lower_right = tl.load(small + (below + after) * classes + k, mask=real, other=LOWEST)[None, :]
    total, sums = tl.full((block_x,), 0.0, tl.float32), tl.full((block_k,), 0.0, tl.float32)
    to_upper_left, to_upper_right, to_lower_left, to_lower_right = sums, sums, sums, sums
    end = tl.load(column_firsts + j + 1)
    for first in range(tl.load(column_firsts + j), end, block_x):
        x = first + tl.arange(0, block_x)
        left = tl.load(column_weights + 2 * x, mask=x < end, other=0.0)[:, None]
        right = tl.load(column_weights + 2 * x + 1, mask=x < end, other=0.0)[:, None]
        upper, lower = left * upper_left + right * upper_right, left * lower_left + right * lower_right
        to_upper = tl.full((block_x, block_k), 0.0, tl.float32)
        to_lower = to_upper
        for y in range(tl.load(row_firsts + i), tl.load(row_firsts + i + 1)):
            up, down = tl.load(row_weights + 2 * y), tl.load(row_weights + 2 * y + 1)
            label = tl.load(masks + (n * height + y) * width + x, mask=x < end, other=IGNORED).to(tl.int32)
            valid, hit = label != IGNORED, k[None, :] == label[:, None]
            scores = up * upper + down * lower
            scores -= tl.max(scores, axis=1)[:, None]
            powers = tl.exp(scores)
            normaliser = tl.sum(powers, axis=1)
            score = tl.where(label < classes, tl.sum(tl.where(hit, scores, 0.0), axis=1), float("nan"))
            total += tl.where(valid, tl.log(normaliser) - score, 0.0)
            change = powers * (1.0 / normaliser)[:, None] - tl.where(hit, 1.0, 0.0)
            change = tl.where(valid[:, None], change, 0.0)
            to_upper += up * change
            to_lower += down * change
        to_upper_left += tl.sum(left * to_upper, axis=0)
        to_upper_right += tl.sum(right * to_upper, axis=0)
        to_lower_left += tl.sum(left * to_lower, axis=0)
        to_lower_right += tl.sum(right * to_lower, axis=0)
    tl.store(totals + patch, tl.sum(total, axis=0))
    tl.store(corners + patch * classes + k, to_upper_left, mask=real)
    tl.store(corners + (patches + patch) * classes + k, to_upper_right, mask=real)
    tl.store(corners + (2 * patches + patch) * classes + k, to_lower_left, mask=real)
    tl.store(corners + (3 * patches + patch) * classes + k, to_lower_right, mask=real)

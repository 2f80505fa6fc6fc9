"""Which form of a loss a GPU computes: the reference, or one that gives the same numbers there in less time."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deeplab.ranks import ALONE, Ranks

# logits (N, h, w, K), masks uint8 (N, H, W) -> the sum over the valid pixels, its gradient (N, h, w, K)
Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

ROUNDS = 3  # of which the shortest counts
TOLERANCE = 1e-3  # relative; the two forms differ by rounding, which is less
CHOSEN: dict[tuple[object, ...], Form] = {}  # in this process, by device and shapes


def fastest(reference: Form, small: Tensor, masks: Tensor) -> Form:
    """`reference`, or its Triton kernel where that was measured to be faster with these arguments.

    Measured once for each shape in a process, which waits for its GPU then. All processes of a cell take the kernel, or
    none. A choice by time may be another one in the next run, and the last bits differ: with deterministic kernels, in
    fp64 and on a CPU it is always the reference.
    """
    on_gpu, deterministic = small.device.type == "cuda", torch.are_deterministic_algorithms_enabled()
    if not on_gpu or deterministic or small.dtype != torch.float32:
        return reference
    key = (small.device, small.shape, masks.shape)
    if key not in CHOSEN:
        kernel = faster_kernel(reference, small, masks)
        ranks = Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE
        (refused,) = ranks.any(kernel is None)
        CHOSEN[key] = reference if refused or kernel is None else kernel
    return CHOSEN[key]


def faster_kernel(reference: Form, small: Tensor, masks: Tensor) -> Form | None:
    """The kernel; None if it is slower. Warns, and returns None, if it cannot be used or gives other numbers."""
    try:
        from deeplab.losses.fused import ERRORS, in_one_pass
    except ImportError as error:
        warn(str(error))
        return None
    try:
        apart = difference(in_one_pass(small, masks), reference(small, masks))
        ours, theirs = (milliseconds(form, small, masks) for form in (in_one_pass, reference))
    except ERRORS as error:
        warn(str(error).strip().partition("\n")[0])
        return None
    if not apart <= TOLERANCE:
        warn(f"its numbers differ by {apart:.1e} of their size")
        return None
    return in_one_pass if ours < theirs else None


def warn(why: str) -> None:
    """Warn that the kernel is not used."""
    warnings.warn(f"the loss is computed without its Triton kernel, which may be slower: {why}", stacklevel=2)


def difference(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    """The largest relative difference of a sum and its gradient; NaN if there is one."""
    apart = [(one - other).norm() / other.norm().clamp(min=1e-30) for one, other in zip(found, expected, strict=True)]
    return float(torch.stack(apart).max())


def milliseconds(form: Form, small: Tensor, masks: Tensor) -> float:
    """The shortest time of ROUNDS calls, by the clock of the GPU."""
    marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        form(small, masks)
        mark.record()
    torch.cuda.synchronize(small.device)
    return min(float(one.elapsed_time(other)) for one, other in pairwise(marks))

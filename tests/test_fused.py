"""The Triton kernel of the loss without a GPU: interpreted on the CPU, compiled for GPUs, and when it is chosen."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deeplab.losses import choice
from deeplab.losses.choice import faster_kernel, fastest
from deeplab.losses.cross_entropy import in_chunks

triton = pytest.importorskip("triton", reason="Triton comes with torch for NVIDIA GPUs on Linux")

from deeplab.losses import fused  # noqa: E402  it imports Triton

TENSORS = {"given": ("*fp32", "*u8"), "rows": ("*i64", "*fp32"), "columns": ("*i64", "*fp32")}
SIGNATURE = {**TENSORS, "results": ("*fp32", "*fp32"), "sizes": ("i32",) * 5}


def test_interpreted_it_gives_what_the_reference_gives():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize(("pixels", "classes"), [(8, 32), (1, 256)])
def test_it_compiles_for_a_gpu_and_has_no_atomics(pixels, classes, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    blocks = {"block_x": pixels, "block_k": classes}
    source = ASTSource(fused.cross_entropy_of_patch, {**SIGNATURE, **dict.fromkeys(blocks, "constexpr")}, blocks)
    options = {"num_warps": 1, "enable_fp_fusion": True}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert "ex2.approx" in code
    assert not re.findall(r"\b(?:atom|red)\.\S+", code)


def on_gpu(kind=torch.float32):
    """What the choice looks at."""
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=kind, shape=(2, 4, 4, 3))


def answer(value=1.0):
    return lambda small, masks: (torch.tensor(value), torch.full((2,), value))


@pytest.fixture
def times(monkeypatch):
    """The milliseconds of each form; the kernel is a stand-in that gives the same as the reference."""
    kernel, reference = answer(), answer()
    times = {kernel: 1.0, reference: 2.0}
    measured = []

    def measure(form, small, masks):
        measured.append(form)
        return times[form]

    monkeypatch.setattr(choice, "CHOSEN", {})
    monkeypatch.setattr(choice, "milliseconds", measure)
    monkeypatch.setattr(fused, "in_one_pass", kernel)
    return SimpleNamespace(kernel=kernel, reference=reference, of=times, measured=measured)


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_form_is_taken_and_measured_once_for_each_shape(times, faster):
    times.of[times.kernel] = 1.0 if faster else 2.0
    for height in (16, 16, 24, 16):
        masks = SimpleNamespace(shape=(2, height, 16))
        assert fastest(times.reference, on_gpu(), masks) is (times.kernel if faster else times.reference)
    assert times.measured == [times.kernel, times.reference] * 2


@pytest.mark.parametrize("value", [1.01, float("nan")])
def test_a_kernel_with_other_numbers_is_not_taken(times, monkeypatch, value):
    wrong = answer(value)
    times.of[wrong] = 0.1
    monkeypatch.setattr(fused, "in_one_pass", wrong)
    with pytest.warns(UserWarning, match="without its Triton kernel.*: its numbers differ by (1.0e-02|nan)"):
        assert faster_kernel(times.reference, None, None) is None


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Failed to find C compiler. Say\nCC"), triton.OutOfResources(2, 1, "registers"), OSError("no")],
)
def test_a_kernel_that_cannot_be_used_is_one_line_and_the_reference(times, monkeypatch, error):
    def broken(small, masks):
        raise error

    monkeypatch.setattr(fused, "in_one_pass", broken)
    with pytest.warns(UserWarning, match=f"which may be slower: {re.escape(str(error).partition(chr(10))[0])}$"):
        assert fastest(times.reference, on_gpu(), SimpleNamespace(shape=(2, 16, 16))) is times.reference
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        assert fastest(times.reference, on_gpu(), SimpleNamespace(shape=(2, 16, 16))) is times.reference


def test_without_triton_it_is_the_reference(times, monkeypatch):
    monkeypatch.setitem(sys.modules, "deeplab.losses.fused", None)
    with pytest.warns(UserWarning, match="without its Triton kernel"):
        assert faster_kernel(times.reference, None, None) is None


@pytest.mark.parametrize("case", ["cpu", "fp64", "deterministic"])
def test_nothing_is_measured_where_it_is_always_the_reference(case, times):
    small = torch.zeros(2, 4, 4, 3) if case == "cpu" else on_gpu(torch.float64 if case == "fp64" else torch.float32)
    torch.use_deterministic_algorithms(case == "deterministic")
    try:
        assert fastest(in_chunks, small, SimpleNamespace(shape=(2, 16, 16))) is in_chunks
    finally:
        torch.use_deterministic_algorithms(False)
    assert not times.measured

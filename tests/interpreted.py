"""The fused loss against its reference on the CPU, by Triton's interpreter: tests/test_fused.py runs this file in a
process of its own, because Triton asks for TRITON_INTERPRET when it is imported.
"""

from importlib import import_module

import pytest
import torch

from deeplab.losses.chunks import interpolation
from deeplab.losses.cross_entropy import cross_entropy, in_chunks
from deeplab.losses.fused import in_one_pass, taps
from deeplab.precision import DTYPES
from deeplab.store import IGNORE

LOSS = import_module("deeplab.losses.cross_entropy")  # `deeplab.losses` has a function of this name


def draw(classes, small, size, samples=1):
    """Logits (N, h, w, K), and masks of which some rows and single pixels are ignored."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(samples, *small, classes)
    masks = torch.randint(0, min(classes, IGNORE), (samples, *size), dtype=torch.uint8)
    masks[0, :2], masks[:, 3::4, ::3] = IGNORE, IGNORE
    return logits, masks


CASES = {
    "2 classes": (2, (2, 3), (13, 17)),
    "19 classes": (19, (2, 2), (9, 11), 2),
    "21 classes": (21, (2, 3), (16, 24)),
    "150 classes": (150, (2, 2), (5, 7)),
    "256 classes": (256, (1, 2), (4, 5)),
    "output stride 16": (5, (1, 2), (16, 32)),
    "the same size": (5, (3, 4), (3, 4)),
    "smaller": (5, (4, 5), (3, 4)),
}


BOTH = [(name, kind) for name in CASES for kind in ("fp32", "bf16") if "classes" in name or kind == "fp32"]


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_sum_and_gradient_are_those_of_the_reference(name, kind):
    small, masks = draw(*CASES[name])
    ours, theirs = (form(small.to(DTYPES[kind]).float(), masks) for form in (in_one_pass, in_chunks))
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_loss_learns_through_it(kind, monkeypatch):
    small, masks = draw(*CASES["19 classes"])
    found = []
    for form in (in_one_pass, in_chunks):
        monkeypatch.setattr(LOSS, "fastest", lambda *_, form=form: form)
        logits = small.permute(0, 3, 1, 2).to(kind).requires_grad_()
        loss = cross_entropy(logits, masks, (masks != IGNORE).sum())
        (3 * loss).backward()
        found.append((loss, logits.grad))
    assert found[0][1].dtype == kind
    torch.testing.assert_close(*found)


def test_the_same_input_gives_the_same_bits():
    given = draw(*CASES["19 classes"])
    torch.testing.assert_close(in_one_pass(*given), in_one_pass(*given), rtol=0, atol=0)


def test_extreme_logits_are_no_problem():
    small, masks = draw(*CASES["19 classes"])
    ours, theirs = (form(1e4 * small, masks) for form in (in_one_pass, in_chunks))
    torch.testing.assert_close(ours, theirs)


def test_without_a_valid_pixel_sum_and_gradient_are_zero():
    small, masks = draw(*CASES["19 classes"])
    total, gradient = in_one_pass(small, torch.full_like(masks, IGNORE))
    assert (total, gradient.abs().max()) == (0, 0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, which computes here
def test_a_logit_that_is_not_finite_makes_the_sum_nan():
    for value in (float("nan"), float("inf")):
        small, masks = draw(*CASES["19 classes"])
        small[0, 1, 1, 4] = value
        assert in_one_pass(small, masks)[0].isnan()


def test_a_label_of_no_class_makes_the_sum_nan():
    small, masks = draw(*CASES["19 classes"])
    masks[1, 5, 5] = 19
    assert in_one_pass(small, masks)[0].isnan()


@pytest.mark.parametrize(("size", "small"), [(33, 5), (512, 64), (5, 6), (6, 6), (7, 1), (513, 65), (100, 7)])
def test_the_taps_are_the_matrix_of_bilinear_resizing(size, small):
    expected = interpolation(size, small, torch.zeros(()))
    firsts, weights = taps(size, small, expected)
    found = torch.zeros(size, small + 2)
    for patch in range(small + 1):
        found[firsts[patch] : firsts[patch + 1], patch : patch + 2] = weights[firsts[patch] : firsts[patch + 1]]
    assert firsts[0] == 0
    assert firsts[-1] == size
    assert found[:, [0, -1]].eq(0).all()
    torch.testing.assert_close(found[:, 1:-1], expected, rtol=0, atol=0)

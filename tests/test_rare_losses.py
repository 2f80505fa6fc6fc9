"""Losses for classes that are rare: against plain formulas and independent code, in chunks, over several processes."""

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch import losses as reference

from deeplab.errors import SettingsError
from deeplab.losses import LOSSES, Criterion, chunks
from deeplab.losses.class_weights import median_frequency
from deeplab.losses.ohem import kth_largest
from deeplab.ranks import ALONE
from deeplab.step import step_loss, valid_pixels
from deeplab.store import Record
from tests.memory import LargestFloat
from tests.test_ranks import CPU, plain, together
from tests.tiny import tiny_cell, train_config

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = torch.tensor([0.3, 1.0, 4.0, 2.5, 0.7])
SETTINGS = [
    {"loss": "focal"},
    {"loss": "focal", "focal_gamma": 0.5},
    {"loss": "ohem"},
    {"loss": "ohem", "ohem_threshold": 0.05, "ohem_min_share": 0.3},
    {"loss": "dice"},
    {"loss": "lovasz"},
    {"loss": "cross_entropy+0.5*dice"},
    {"loss": "2*focal+lovasz"},
]
WEIGHTED = [{**each, "class_weights": "median_frequency"} for each in ({"loss": "cross_entropy"}, *SETTINGS)]


def name_of(settings):
    return " ".join(str(value) for value in settings.values())


def draw(classes=5, small=(5, 6), size=(17, 20), batch=4):
    logits = 2 * torch.randn(batch, classes, *small, dtype=torch.float64)
    masks = torch.randint(0, classes, (batch, *size), dtype=torch.uint8)
    masks[0, :12] = 255
    masks[2] = 255
    masks[1, masks[1] == 3] = 0  # a class that this image does not have
    return logits, masks


def upsample(logits, masks):
    return F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)


def plain_terms(logits, masks, train, weights):
    """What each loss stands for, written out without chunks."""
    full, labels, valid = upsample(logits, masks), masks.long(), masks != 255
    losses = F.cross_entropy(full, labels, ignore_index=255, reduction="none")[valid]
    own = losses.new_ones(len(losses)) if weights is None else weights.to(losses)[labels[valid]]
    yield (
        "weighted_cross_entropy",
        F.cross_entropy(full, labels, weights.to(full) if weights is not None else None, ignore_index=255),
    )
    yield "cross_entropy", losses.mean()
    yield "focal", (own * (1 - (-losses).exp()) ** train.focal_gamma * losses).mean()
    hard = losses > -torch.tensor(train.ohem_threshold).log()
    if hard.sum() < (fewest := int(train.ohem_min_share * len(losses))):
        hard = losses >= losses.topk(fewest).values[-1]
    yield "ohem", (own * losses)[hard].sum() / own[hard].sum()
    p, g = full.softmax(1).movedim(1, -1)[valid], F.one_hot(labels[valid], full.shape[1])
    each = torch.ones(full.shape[1]).double() if weights is None else weights.double()
    dice = 1 - 2 * (p * g).sum(0) / (p.sum(0) + g.sum(0))
    present = each * (g.sum(0) > 0)
    yield "dice", (present * dice).sum() / present.sum()
    images = []
    for image, mask in zip(full, masks, strict=True):
        here = image.softmax(0)[:, mask != 255].T
        found = [c for c in mask.unique().tolist() if c != 255]
        values, shares = [lovasz(here[:, c], mask[mask != 255] == c) for c in found], each[found]
        images.append((torch.stack(values) * shares).sum() / shares.sum() if values else 0 * image.sum())
    yield "lovasz", torch.stack(images).mean()


def lovasz(probabilities, true):
    """Definition 1 of the paper: errors in falling order, times the growth of 1 - IoU when their pixels are wrong."""
    errors = (true.double() - probabilities).abs()
    order = errors.argsort(descending=True)
    total, missed, added, before, value = int(true.sum()), 0, 0, 0.0, 0.0
    for index in order.tolist():
        missed, added = missed + bool(true[index]), added + (not true[index])
        after = 1 - (total - missed) / (total + added)
        value, before = value + errors[index] * (after - before), after
    return value


def plain_loss(logits, masks, train, weights):
    terms = dict(plain_terms(logits, masks, train, weights))
    return sum(factor * terms[name] for name, factor in train.losses.items())


def both(settings, kind=torch.float64):
    """Value and gradient of the criterion and of the plain form."""
    torch.manual_seed(0)
    train, (logits, masks) = train_config(**settings), draw()
    weights = WEIGHTS if train.class_weights else None
    one, other = logits.to(kind).clone().requires_grad_(), logits.requires_grad_()
    ours = Criterion(train, ALONE, weights)(one, masks, valid_pixels(masks))
    theirs = plain_loss(other, masks, train, weights)
    (3 * ours).backward()
    (3 * theirs).backward()
    return ours, theirs, one.grad, other.grad


@pytest.mark.parametrize("budget", [300, 10**9], ids=["in parts", "all at once"])
@pytest.mark.parametrize("settings", [*SETTINGS, *WEIGHTED], ids=name_of)
def test_a_loss_and_its_gradient_are_those_of_the_plain_formula(settings, budget, monkeypatch):
    monkeypatch.setitem(chunks.CHUNK, "cpu", budget)
    ours, theirs, gradient, expected = both(settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0, check_dtype=False)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_a_loss_in_fp32_is_that_of_fp64_to_rounding(settings):
    ours, theirs, gradient, expected = both(settings, torch.float32)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-7)


def test_dice_and_lovasz_are_those_of_segmentation_models_pytorch():
    """Which takes fp32 alone, and images with a valid pixel."""
    torch.manual_seed(0)
    logits, masks = (each[:2] for each in draw())
    logits = logits.float()
    full, count = upsample(logits, masks), valid_pixels(masks)
    for name, theirs in (
        ("dice", reference.DiceLoss("multiclass", ignore_index=255)),
        ("lovasz", reference.LovaszLoss("multiclass", per_image=True, ignore_index=255)),
    ):
        ours = Criterion(train_config(loss=name))(logits, masks, count)
        torch.testing.assert_close(ours, theirs(full, masks.long()), rtol=1e-6, atol=0)


def test_focal_over_two_classes_is_the_binary_one_of_segmentation_models_pytorch():
    torch.manual_seed(0)
    logits, masks = draw(classes=2)
    full = upsample(logits, masks)
    theirs = reference.FocalLoss("binary", gamma=2.0, ignore_index=255)(full[:, 1] - full[:, 0], masks)
    ours = Criterion(train_config(loss="focal"))(logits, masks, valid_pixels(masks))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", [*SETTINGS, *WEIGHTED], ids=name_of)
def test_a_batch_without_a_valid_pixel_gives_zero_and_no_gradient(settings):
    train = train_config(**settings)
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    masks = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    value = Criterion(train, ALONE, WEIGHTS if train.class_weights else None)(logits, masks, valid_pixels(masks))
    value.backward()
    assert value == 0
    assert logits.grad.eq(0).all()


def test_processes_compute_together_what_one_computes(tmp_path):
    """However unevenly valid pixels, classes and hard pixels are spread."""
    torch.manual_seed(1)
    images, masks = torch.randn(4, 3, 32, 32), torch.randint(0, 3, (4, 32, 32), dtype=torch.uint8)
    masks[:2, 3:] = 255
    masks[2:][masks[2:] == 1] = 0
    images[2:] *= 5

    def work(ranks):
        found = {}
        for settings in ({"loss": "cross_entropy"}, *SETTINGS, *WEIGHTED):
            part, network, train = ranks.part(4, CPU), plain(), train_config(**settings)
            joined = ranks.join(network, CPU)
            criterion = Criterion(train, ranks, WEIGHTS[:3] if train.class_weights else None)
            loss = step_loss(joined, (images[part], masks[part]), tiny_cell(train=train), ranks, criterion)
            (loss * ranks.world).backward()
            found[name_of(settings)] = ranks.sum(loss.detach()), [each.grad for each in network.parameters()]
        return found

    expected = work(ALONE)
    for found in together(work, tmp_path):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 2, 3, 700, 1000])
def test_the_kth_largest_is_exact(k):
    torch.manual_seed(k)
    values = torch.cat([torch.rand(990) ** 8 * 30, torch.tensor([0.0, 0.0, 1e-40, 7.5, 7.5, 7.5, -1.0, -1.0])])
    expected = values.topk(k).values[-1].clamp(min=0) if k <= 998 else torch.tensor(0.0)
    assert kth_largest(values, torch.tensor(k), ALONE).equal(expected)


@pytest.mark.parametrize("loss", ["weighted_cross_entropy", "focal", "ohem", "dice", "lovasz"])
def test_no_float_of_the_size_of_the_upsampled_logits_is_made(loss):
    """Of 0.12 of it for the losses over pixels; Lovász-softmax sorts an image, here one of sixteen."""
    logits = torch.randn(16, 20, 16, 16)
    masks = torch.randint(0, 4, (16, 256, 128), dtype=torch.uint8)
    train = train_config(loss=loss, class_weights="median_frequency")
    full = 16 * 20 * 256 * 128
    with LargestFloat() as seen:
        Criterion(train, ALONE, torch.ones(20))(logits.requires_grad_(), masks, valid_pixels(masks)).backward()
    assert seen.largest <= (full / 16 if loss == "lovasz" else 0.12 * full)


def record(**pixels):
    return Record(id="a", split="train", height=1, width=1, offset=0, checksum=0, pixels={int(key[1:]): value for key, value in pixels.items()})  # fmt: skip


def test_median_frequency_counts_the_pixels_of_the_images_that_have_the_class():
    records = [record(c0=60, c1=40, c255=900), record(c0=90, c2=10), record(c0=100)]
    # class 0: 250 of 300, class 1: 40 of 100, class 2: 10 of 100; class 3 does not occur
    assert median_frequency(records, 4) == pytest.approx((0.4 / (250 / 300), 1.0, 4.0, 0.0))


@pytest.mark.parametrize(("settings", "names"), [
    ({"loss": "cross_entropy"}, {"cross_entropy": 1}),
    ({"loss": "cross_entropy + 0.5*dice"}, {"cross_entropy": 1, "dice": 0.5}),
    ({"loss": "2 * cross_entropy", "class_weights": "median_frequency"}, {"weighted_cross_entropy": 2}),
])  # fmt: skip
def test_a_loss_is_a_name_or_a_sum(settings, names):
    assert train_config(**settings).losses == names


@pytest.mark.parametrize("loss", ["", "dice+", "dice+dice", "dice*2", "0.5 dice", "-1*dice"])
def test_another_form_of_a_loss_is_refused(loss):
    with pytest.raises(ValueError, match="expected the name of a loss, or different ones joined by"):
        train_config(loss=loss)


def test_class_weights_are_needed_where_a_loss_has_none_without():
    with pytest.raises(ValueError, match="class_weights: missing, expected median_frequency"):
        train_config(loss="weighted_cross_entropy")
    with pytest.raises(SettingsError, match="class_weights: the weights of the classes are needed"):
        Criterion(train_config(class_weights="median_frequency"))
    assert set(LOSSES) == {"cross_entropy", "weighted_cross_entropy", "focal", "ohem", "dice", "lovasz"}

"""The code for CUDA without a GPU: tensors that claim to be there, with shapes, strides and devices but no numbers.

An operation over two devices fails here as it would there, and so does reading a number, for which the host would wait.
The backward pass of the network and the optimizer need a real device; the loss makes its gradient on the way forward.

Pretending makes torch count a GPU for the rest of the process, and a process with one cannot fork: these tests are apart.
"""

import re
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.cuda.amp.common
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from deeplab import inference, load_model, transforms
from deeplab.config import Protocol
from deeplab.data import Batch, input_on_device, network_input
from deeplab.inference import as_input, evaluate, predict_tiles
from deeplab.losses import LOSSES, Criterion, choice
from deeplab.model import DeepLabV3, upsample
from deeplab.ranks import ALONE
from deeplab.step import build_optimizer, step_loss, train_step, try_step
from deeplab.store import Store
from pipeline.training.weights import load_network
from tests.forked import apart
from tests.tiny import model_config, tiny_cell, train_config, write_store, write_weights

CUDA = torch.device("cuda")
LAST = torch.channels_last
PRECISIONS = ["fp32", "bf16", "fp16"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pretended(monkeypatch):
    """The mode, and autocast as with a GPU. Networks are made before it is entered: a fake parameter cannot be moved."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(choice, "faster_kernel", lambda *_: None)  # it takes a real GPU to be measured
    transforms.per_channel.cache_clear()  # no real tensor into the test, no fake one out of it
    yield FakeTensorMode(allow_non_fake_inputs=True)
    transforms.per_channel.cache_clear()


def build():
    return DeepLabV3(model_config(), 3).to(memory_format=LAST).train()


def batch():
    images, masks = torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(4, 32, 32, dtype=torch.uint8)
    return Batch(images, masks, torch.full((4, 2), 32), torch.zeros(4, 5), torch.arange(4))


def loss_of(network, pretended, precision="fp32", loss="cross_entropy"):
    """The loss of a step from the slot of the ring on, and the network on the pretended device."""
    cell, samples = tiny_cell(train=settings_of(precision, loss)), batch()
    with pretended:
        network.to(CUDA)
        weights = torch.ones(3, device=CUDA) if cell.train.class_weights else None
        criterion = Criterion(cell.train, ALONE, weights)
        return step_loss(network, network_input(samples, cell, CUDA), cell, ALONE, criterion)


def settings_of(precision, loss):
    """With the class weights that this one loss needs."""
    weights = "median_frequency" if loss == "weighted_cross_entropy" else None
    return train_config(precision=precision, loss=loss, class_weights=weights)


@pytest.mark.parametrize("precision", PRECISIONS)
@apart
def test_a_step_up_to_its_loss_and_gradient_stays_on_the_device_and_waits_for_nothing(precision, pretended):
    loss = loss_of(build(), pretended, precision)
    assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)


@apart
def test_every_loss_but_lovasz_waits_for_nothing(pretended, monkeypatch):
    """Up to the gradient of a chunk, which autograd makes on a real device only."""
    monkeypatch.setattr(torch.autograd, "grad", lambda value, scores: (torch.zeros_like(scores) * value,))
    for loss in sorted(LOSSES.keys() - {"lovasz"}):
        found = loss_of(build(), pretended, loss=loss)
        assert (found.device.type, found.dtype) == ("cuda", torch.float32), loss


class Kernel:
    """Stands for a Triton kernel, and checks what it is given."""

    def __getitem__(self, grid):
        def launch(given, rows, columns, results, *_, **__):
            assert {tensor.device.type for tensor in (*given, *rows, *columns, *results)} == {"cuda"}
            assert results[0].numel() == grid[0]

        return launch


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("precision", PRECISIONS)
@apart
def test_so_does_the_fused_loss(precision, pretended, monkeypatch):
    from deeplab.losses import fused

    monkeypatch.setattr(fused, "cross_entropy_of_patch", Kernel())
    monkeypatch.setattr(choice, "faster_kernel", lambda *_: fused.in_one_pass)
    loss = loss_of(build(), pretended, precision)
    assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)


PROTOCOLS = {
    "whole": Protocol(scales=(1.0,), flip=False, window=None, stride=None),
    "scales and flips": Protocol(scales=(0.5, 1.0), flip=True, window=None, stride=None),
    "windows": Protocol(scales=(1.0,), flip=False, window=(32, 32), stride=(16, 16)),
}


@pytest.fixture
def found(monkeypatch):
    """The predictions on the device. What follows, reading them, is replaced; so is the check of the logits."""
    found, likeliest = [], inference.likeliest

    def read(passes, size):
        found.append(likeliest(passes, size))
        numbers = SimpleNamespace(numpy=lambda: np.zeros(found[-1].shape, np.uint8))
        return SimpleNamespace(cpu=lambda: numbers)

    monkeypatch.setattr(inference, "likeliest", read)
    monkeypatch.setattr(inference, "require_finite", lambda _: None)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@apart
def test_an_evaluation_waits_for_nothing_but_its_logits_check_and_its_labels(
    precision, protocol, pretended, found, tmp_path
):
    cell, network = tiny_cell(train=train_config(precision=precision)), build()
    split = Store(write_store(tmp_path)).split("val")
    with pretended:
        network.to(CUDA)
        evaluate(network, split, 3, cell.inference, protocol, CUDA)
    assert [(labels.device.type, labels.shape) for labels in found] == [("cuda", (1, 40, 48))] * 3


@apart
def test_a_prediction_in_tiles_waits_for_nothing_but_the_same(pretended, found):
    network = build().eval()
    with pretended:
        network.to(CUDA)
        predict_tiles(network, np.zeros((48, 64, 3), np.uint8), tiny_cell().inference, (32, 32), (16, 16), CUDA)
    assert {labels.device.type for labels in found} == {"cuda"}
    assert len(found) == 6


def odd_layouts(network, images):
    """The convolutions whose input is not channels last. The layouts on the CPU are those of a GPU."""
    odd = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, given, _, name=name: (
                    odd.append(name)
                    if not all(tensor.is_contiguous(memory_format=LAST) for tensor in (given[0], module.weight))
                    else None
                )
            )
    network(images)
    return odd


def test_every_convolution_of_a_training_gets_channels_last():
    images, _ = network_input(batch(), tiny_cell(), torch.device("cpu"))
    assert odd_layouts(build(), images) == []


@pytest.mark.parametrize("load", ["evaluate", "predict"])
def test_every_convolution_of_a_prediction_gets_channels_last(load, tmp_path):
    cell, file = tiny_cell(), write_weights(tmp_path / "seed0.safetensors")
    network = load_model(file).network if load == "predict" else load_network(file, "tiny", cell, 3, PROTOCOLS["whole"])
    images = as_input(np.zeros((2, 40, 48, 3), np.uint8), cell.inference, torch.device("cpu"))
    assert odd_layouts(network, images) == []
    assert odd_layouts(network, images.flip(-1)) == []


SLIPS = {
    "a number is read": lambda logits: logits * logits.sum().item(),
    "a number is compared": lambda logits: logits if logits.sum() > 0 else -logits,
    "a tensor of the host": lambda logits: logits + torch.zeros(3).view(1, 3, 1, 1),
    "a copy to the host": lambda logits: logits.cpu(),
}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
@apart
def test_a_planted_slip_is_found(slip, pretended):
    network = build()
    network.classifier.register_forward_hook(lambda module, given, logits: slip(logits))
    with pytest.raises(RuntimeError):
        loss_of(network, pretended)


def test_a_planted_layout_is_found():
    network = build()
    network.dropout.register_forward_hook(lambda module, given, features: features.contiguous())
    images, _ = network_input(batch(), tiny_cell(), torch.device("cpu"))
    assert odd_layouts(network, images) == ["classifier"]


# What torch refuses on a GPU when `train.deterministic` is set: the list in torch.use_deterministic_algorithms.
REFUSED = re.compile(
    r"aten::(avg_pool3d_backward|_?adaptive_(avg|max)_pool[23]d_backward|fractional_max_pool[23]d_backward|max_unpool[23]d"
    r"|_?upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d)(_aa)?_backward|reflection_pad[123]d_backward"
    r"|nll_loss2?d?_(forward|backward)|_ctc_loss_backward|_embedding_bag\w*|put_?|histc|bincount|median|nanmedian"
    r"|grid_sampler_[23]d_backward|scatter_reduce_?)"
)


class Operations(TorchDispatchMode):
    """The names of all operations, those of the backward pass included."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.add(function._schema.name)
        return function(*arguments, **(options or {}))

    def refused(self):
        return sorted(name for name in self.names if REFUSED.fullmatch(name))


def whole_step(network, precision="fp32", loss="cross_entropy"):
    """All operations from the slot of the ring to the new weights, as on a GPU."""
    cell = tiny_cell(train=settings_of(precision, loss))
    criterion = Criterion(cell.train, ALONE, torch.ones(3) if cell.train.class_weights else None)
    optimizer = build_optimizer(network, cell.train)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    with Operations() as operations:
        samples = input_on_device(batch(), cell, torch.device("cpu"))
        try_step(network, network, samples, cell, ALONE, "here", criterion)
        train_step(network, optimizer, scaler, samples, cell, ALONE, criterion)
    return operations


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_has_a_deterministic_kernel_for_everything_that_it_does(precision, loss):
    operations = whole_step(build(), precision, loss)
    assert {"aten::convolution_backward", "aten::max_pool2d_with_indices_backward"} < operations.names
    assert operations.refused() == []


def test_a_planted_operation_without_a_deterministic_kernel_is_found():
    network = build()
    network.classifier.register_forward_hook(lambda module, given, logits: upsample(logits, 8, 8))
    assert whole_step(network).refused() == ["aten::upsample_bilinear2d_backward"]

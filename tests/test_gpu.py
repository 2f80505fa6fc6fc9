"""What only a real GPU can tell; run on one by `pytest -m gpu tests/test_gpu.py`, and by benchmarks.gpu.

Imports neither DVC nor MLflow. GPU_TESTS=cpu runs those that make sense on a CPU, to see that they are not broken.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from deeplab.data import Batch, input_on_cpu, input_on_device, network_input
from deeplab.inference import predict
from deeplab.losses import Criterion
from deeplab.losses.choice import fastest
from deeplab.losses.cross_entropy import in_chunks
from deeplab.model import DeepLabV3
from deeplab.ranks import ALONE
from deeplab.segmenter import WHOLE
from deeplab.step import build_optimizer, set_rate, step_loss, train_step, try_step, valid_pixels
from pipeline.training.device import choose_kernels_by_time, set_arithmetic
from tests.fitting import PACE, run
from tests.tiny import model_config, recipe_config, tiny_cell, train_config

DEVICE = torch.device(os.environ.get("GPU_TESTS", "cuda"))
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.usefixtures("one_thread", "flags"),
]


@pytest.fixture
def flags():
    """What a test may change for the whole process."""
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(False)


def build(device=DEVICE):
    torch.manual_seed(0)
    network = DeepLabV3(model_config(dropout=0.0), 3)
    return network.to(device).to(memory_format=torch.channels_last).train()


def batch():
    rng = np.random.default_rng(0)
    draws = np.array([[5, 1.2, 0.8, 9, 1], [0, 1, 1.3, -7, 0.7], [0, 1, 1, 0, 1], [-20, 1, 1, 3, 1.4]], np.float32)
    return Batch(
        torch.from_numpy(rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, 3, (4, 64, 64), dtype=np.uint8)),
        torch.tensor([[64, 64], [64, 50], [40, 64], [64, 64]]),
        torch.from_numpy(draws),
        torch.arange(4),
    )


def cell_in(precision, **changes):
    return tiny_cell(recipe=recipe_config(crop=(64, 64)), train=train_config(precision=precision, **changes))


def loss_and_gradients(device, precision):
    network, cell = build(device), cell_in(precision)
    samples = tuple(tensor.to(device) for tensor in network_input(batch(), cell, CPU))
    loss = step_loss(network, samples, cell, ALONE)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad.cpu() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "ohem", "dice", "lovasz"])
def test_a_loss_with_class_weights_is_that_of_the_cpu_with_deterministic_kernels(loss):
    train = train_config(loss=loss, class_weights="median_frequency")
    torch.manual_seed(0)
    logits, masks = torch.randn(4, 5, 16, 16), torch.randint(0, 5, (4, 64, 64), dtype=torch.uint8)
    masks[0, :40] = 255
    found = []
    torch.use_deterministic_algorithms(True)
    for device in (DEVICE, DEVICE, CPU):
        own = logits.to(device).requires_grad_()
        weights = torch.tensor([0.3, 1.0, 4.0, 2.5, 0.7], device=device)
        value = Criterion(train, ALONE, weights)(own, masks.to(device), valid_pixels(masks).to(device))
        value.backward()
        found.append((value.detach().cpu(), own.grad.cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "loss", "gradients"), [("fp32", 1e-5, 1e-3), ("bf16", 0.05, 0.5), ("fp16", 0.01, 0.1)]
)
def test_loss_and_gradients_are_those_of_the_cpu_in_fp32(precision, loss, gradients):
    ours, theirs = loss_and_gradients(DEVICE, precision), loss_and_gradients(CPU, "fp32")
    assert ours[0] == pytest.approx(theirs[0], rel=loss)
    one, other = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in (ours[1], theirs[1]))
    assert float((one - other).norm() / other.norm()) < gradients


@pytest.mark.skipif(DEVICE.type != "cuda", reason="tests/test_fused.py has it interpreted")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 19, 21, 150, 256])
@pytest.mark.parametrize("size", [(128, 128), (67, 131), (256, 128)], ids=["OS8", "odd", "OS16"])
def test_the_fused_loss_is_its_reference_and_the_same_each_time(size, classes, kind):
    from deeplab.losses.fused import in_one_pass

    torch.manual_seed(0)
    small = 3 * torch.randn(2, 16, size[1] // 8, classes, device=DEVICE)
    masks = torch.randint(0, min(classes, 255), (2, *size), dtype=torch.uint8, device=DEVICE)
    masks[0, :9], masks[:, 3::4, ::3] = 255, 255
    small = small.to(kind).float()
    ours, again, theirs = in_one_pass(small, masks), in_one_pass(small, masks), in_chunks(small, masks)
    torch.testing.assert_close(ours, again, rtol=0, atol=0)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=2e-5)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a CPU has no choice")
def test_a_form_of_the_loss_is_chosen_without_a_warning():
    small = torch.randn(2, 16, 16, 21, device=DEVICE)
    masks = torch.zeros(2, 128, 128, dtype=torch.uint8, device=DEVICE)
    form = fastest(in_chunks, small, masks)
    assert form is fastest(in_chunks, small, masks)
    assert form.__name__ in ("in_chunks", "in_one_pass")


def test_colours_are_those_of_the_cpu():
    cell = cell_in("fp32")
    ours, _ = input_on_device(batch(), cell, DEVICE)
    theirs, _ = input_on_cpu(batch(), cell.model)
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=2e-4)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_predictions_are_those_of_the_cpu_but_for_ties():
    image, settings = batch().images[0].numpy(), cell_in("fp32").inference
    here, there = (predict(build(device).eval(), image, settings, WHOLE, device) for device in (DEVICE, CPU))
    assert (here != there).mean() < 0.01


def test_a_tried_step_leaves_no_trace():
    network, cell = build(), cell_in("bf16")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try_step(network, network, network_input(batch(), cell, DEVICE), cell, ALONE, "here")
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def train(cell, steps=4, scale=2.0**16):
    set_arithmetic(cell.train)
    choose_kernels_by_time(cell.train)
    network = build()
    optimizer = build_optimizer(network, cell.train)
    set_rate(optimizer, 0.01)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=scale, enabled=cell.train.precision == "fp16")
    losses = [
        train_step(network, optimizer, scaler, network_input(batch(), cell, DEVICE), cell).clone() for _ in range(steps)
    ]
    return network, torch.stack(losses).tolist(), optimizer


@pytest.mark.skipif(DEVICE.type != "cuda", reason="minutes on a CPU")
def test_fp16_that_overflows_in_its_first_step_learns_all_the_same():
    _, losses, optimizer = train(cell_in("fp16"), steps=40, scale=2.0**24)
    assert all(np.isfinite(losses))
    assert losses[-1] < losses[0]
    assert all(state["momentum_buffer"].isfinite().all() for state in optimizer.state.values())


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a CPU never waits")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_host_waits_for_nothing_in_a_step(precision):
    network, cell = build(), cell_in(precision)
    optimizer, scaler = build_optimizer(network, cell.train), torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    set_rate(optimizer, 0.01)
    pinned = Batch(*(column.pin_memory() for column in batch()))
    train_step(network, optimizer, scaler, network_input(pinned, cell, DEVICE), cell)  # makes what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step(network, optimizer, scaler, network_input(pinned, cell, DEVICE), cell)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_trainings_end_on_the_same_bits(precision):
    cell = cell_in(precision, deterministic=True)
    (one, losses, _), (other, again, _) = train(cell), train(cell)
    assert losses == again
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_deterministic_training_that_is_broken_ends_as_an_unbroken_one(split, tmp_path):
    cell = tiny_cell(train=train_config(deterministic=True))
    set_arithmetic(cell.train)
    choose_kernels_by_time(cell.train)
    pace = replace(PACE, workers=2)
    whole = run(tmp_path / "whole", split, start(), pace, cell, device=DEVICE)
    stops = iter([False, False, True])
    assert not run(tmp_path / "broken", split, start(), pace, cell, device=DEVICE, stop=lambda: next(stops))[0]
    broken = run(tmp_path / "broken", split, start(), pace, cell, device=DEVICE)
    torch.testing.assert_close(broken[1], whole[1], rtol=0, atol=0)
    assert broken[2] == whole[2]


def start():
    torch.manual_seed(1)
    return DeepLabV3(model_config(), 3)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="half a minute on a CPU")
def test_a_compiled_network_is_one_graph_and_gives_the_same_loss():
    network, cell = build(), cell_in("fp32")
    samples = network_input(batch(), cell, DEVICE)
    compiled = torch.compile(network, fullgraph=True)
    ours, theirs = (float(step_loss(each, samples, cell, ALONE).detach()) for each in (compiled, network))
    assert ours == pytest.approx(theirs, rel=1e-4)

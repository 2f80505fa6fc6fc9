"""One step: what it computes, what it costs, and what is tried before the first."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deeplab.errors import NonFiniteError, SettingsError
from deeplab.model import DeepLabV3
from deeplab.monitor import Losses
from deeplab.ranks import ALONE
from deeplab.step import build_optimizer, memory_explained, train_step, try_step
from tests.fitting import small
from tests.tiny import model_config, tiny_cell, train_config

CPU = torch.device("cpu")


def draw(classes=3):
    return torch.randn(4, 3, 32, 32), torch.randint(0, classes, (4, 32, 32), dtype=torch.uint8)


def scaler(precision="fp32"):
    return torch.amp.GradScaler("cpu", enabled=precision == "fp16")


class Reads(TorchDispatchMode):
    """How often the host asks for a number, for which it waits on a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_host_waits_for_no_number_of_a_step(precision):
    network, cell = small(), tiny_cell(train=train_config(precision=precision))
    optimizer, growing = build_optimizer(network, cell.train), scaler(precision)
    losses = Losses(str)
    with Reads() as reads:
        for step in range(3):
            losses.add(train_step(network, optimizer, growing, draw(), cell), step, 0.01, wait=True)
    if precision != "fp16":  # on the CPU the scaler asks whether a gradient overflowed; on CUDA the optimizer does
        assert reads.count == 0
    with Reads() as reads:
        losses.take()
    assert len(losses.recent) == 3


def test_every_parameter_is_decayed_alike():
    network = DeepLabV3(model_config(), 3)
    optimizer = build_optimizer(network, train_config())
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 5e-4
    assert group["momentum"] == 0.9
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in network.parameters()}


def test_under_autocast_weights_statistics_and_loss_stay_in_full_precision():
    network, cell = DeepLabV3(model_config(), 3), tiny_cell(train=train_config(precision="bf16"))
    seen = {}
    network.aspp.point[0].register_forward_hook(lambda *a: seen.update(convolution=a[2].dtype))
    network.aspp.image[0].register_forward_hook(lambda *a: seen.update(pooled=a[1][0].dtype))
    loss = train_step(network, build_optimizer(network, cell.train), scaler(), draw(), cell)
    assert loss.dtype == torch.float32
    assert seen == {"convolution": torch.bfloat16, "pooled": torch.float32}
    assert {value.dtype for value in network.state_dict().values()} <= {torch.float32, torch.int64}


def test_a_tried_step_leaves_no_trace():
    network, cell = small(), tiny_cell()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try_step(network, network, draw(), cell, ALONE, "here")
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_tried_step_that_is_not_finite_says_where(broken):
    network = small()
    if broken == "loss":
        network.head.bias.data.fill_(float("nan"))
    else:
        network.features[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="in the first step"):
        try_step(network, network, draw(), tiny_cell(), ALONE, "in the first step")


def too_much_on_the_cpu():
    torch.empty(2**60, dtype=torch.uint8)


def too_much_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("ask", [too_much_on_the_cpu, too_much_on_a_gpu])
def test_too_little_memory_is_one_line_with_what_to_change(ask):
    match = r"batch_size: out of memory on cpu with 4 crops of 32x32 in fp32. .*gpus_per_cell: 2.*train.precision bf16"
    with pytest.raises(SettingsError, match=match), memory_explained(tiny_cell(), CPU, ALONE):
        ask()


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="shape"), memory_explained(tiny_cell(), CPU, ALONE):
        torch.zeros(2, 3).reshape(5)

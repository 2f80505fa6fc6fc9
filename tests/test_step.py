"""One step: what it computes, what it costs, and what is tried before the first."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from deeplab import step
from deeplab.errors import NonFiniteError, SettingsError
from deeplab.model import DeepLabV3
from deeplab.monitor import Losses
from deeplab.ranks import ALONE, Ranks
from deeplab.step import build_optimizer, memory_explained, rehearse, set_rate, train_step, try_step
from tests.fitting import small
from tests.tiny import model_config, tiny_cell, train_config

CPU = torch.device("cpu")


def draw(classes=3):
    return torch.randn(4, 3, 32, 32), torch.randint(0, classes, (4, 32, 32), dtype=torch.uint8)


def scaler(precision="fp32"):
    return torch.amp.GradScaler("cpu", enabled=precision == "fp16")


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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
        for number in range(3):
            losses.add(train_step(network, optimizer, growing, draw(), cell), number, 0.01, wait=True)
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


def test_a_first_step_that_fp16_skips_leaves_no_memory_that_nobody_wrote(deterministic):
    """The fused kernel writes nothing then; in this mode torch fills new memory with NaN."""
    network, cell = small(), tiny_cell(train=train_config(precision="fp16"))
    optimizer, growing = build_optimizer(network, cell.train), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = {name: value.clone() for name, value in network.named_parameters()}
    train_step(network, optimizer, growing, draw(), cell)
    torch.testing.assert_close(dict(network.named_parameters()), before, rtol=0, atol=0)
    assert growing.get_scale() < 2.0**127
    assert all((state["momentum_buffer"] == 0).all() for state in optimizer.state.values())


def test_steps_are_those_of_plain_sgd_to_the_bit():
    """Momentum that begins with zeros is the gradient of the first step."""
    networks, cell = (small(), small()), tiny_cell()
    ours = build_optimizer(networks[0], cell.train)
    plain = torch.optim.SGD(networks[1].parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, fused=True)
    samples = draw()
    for _ in range(3):
        for network, optimizer in zip(networks, (ours, plain), strict=True):
            set_rate(optimizer, 0.01)
            torch.manual_seed(0)
            train_step(network, optimizer, scaler(), samples, cell)
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict()["state"], plain.state_dict()["state"], rtol=0, atol=0)


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


class Hungry(nn.Module):
    """A network that `room` samples fit into memory with."""

    def __init__(self, room):
        super().__init__()
        self.room, self.network = room, small()

    def forward(self, images):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.network(images)


@pytest.mark.parametrize(
    ("room", "message"),
    [(3, r"fp32 \(2 fit\)\. .*, batch_size 2$"), (1, r"\(not even 2 fit\)\. .*a smaller batch_size$")],
)
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(room, message):
    network = Hungry(room)
    with pytest.raises(SettingsError, match=message):
        rehearse(network, network, draw(), tiny_cell(), ALONE, "here")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_batch_that_fits_is_tried_once(monkeypatch, size):
    """One sample is the part of a process that shares a batch of two."""
    tried = []
    monkeypatch.setattr(step, "try_step", lambda *arguments: tried.append(len(arguments[2][1])))
    rehearse(small(), small(), [part[:size] for part in draw()], tiny_cell(), ALONE, "here")
    assert tried == [size]


def test_a_process_that_shares_a_batch_looks_for_no_smaller_one(monkeypatch):
    """The others may have had enough memory, and wait for it."""
    tried = []
    monkeypatch.setattr(step, "try_step", lambda *arguments: tried.append(1) or too_much_on_a_gpu())
    with pytest.raises(SettingsError, match="with 2 crops of 32x32 in fp32. Share"):
        rehearse(small(), small(), draw(), tiny_cell(), Ranks(0, 2), "here")
    assert tried == [1]


def too_much_on_the_cpu():
    torch.empty(2**60, dtype=torch.uint8)


def too_much_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def too_much_in_cudnn():
    raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")


def too_much_in_cublas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def too_much_for_the_driver():
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(
    "ask", [too_much_on_the_cpu, too_much_on_a_gpu, too_much_in_cudnn, too_much_in_cublas, too_much_for_the_driver]
)
def test_too_little_memory_is_one_line_with_what_to_change(ask):
    match = r"batch_size: out of memory on cpu with 4 crops of 32x32 in fp32. .*gpus_per_cell: 2.*train.precision bf16"
    with pytest.raises(SettingsError, match=match), memory_explained(tiny_cell(), CPU, ALONE):
        ask()


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="shape"), memory_explained(tiny_cell(), CPU, ALONE):
        torch.zeros(2, 3).reshape(5)

import pytest
import torch

from deeplab.errors import NonFiniteError
from deeplab.monitor import ENOUGH, WINDOW, Clock, Losses, forget_peak, peak_memory


def feed(losses, values, wait=False):
    for step, value in enumerate(values):
        losses.add(torch.tensor(value), step, 0.01, wait)


def test_a_loss_far_above_the_median_of_those_before_is_a_spike():
    losses = Losses(str)
    feed(losses, [1.0] * ENOUGH + [2.9, 3.1, 1.0, 4.0])
    mean, spikes = losses.take()
    assert spikes == 2
    assert mean == pytest.approx((ENOUGH + 11.0) / (ENOUGH + 4))
    feed(losses, [1.0])
    assert losses.take() == (1.0, 0)


def test_the_first_losses_are_no_spikes():
    losses = Losses(str)
    feed(losses, [0.1] * (ENOUGH - 1) + [50.0])
    assert losses.take()[1] == 0


def test_spikes_are_counted_alike_when_losses_are_read_together_or_one_by_one_or_after_a_break():
    values = torch.rand(3 * WINDOW).pow(4).tolist()
    one, together, broken = Losses(str), Losses(str), Losses(str)
    feed(one, values)
    feed(together, values, wait=True)
    feed(broken, values[:WINDOW])
    broken = Losses(str, broken.state())
    feed(broken, values[WINDOW:])
    assert one.take()[1] > 0
    assert one.state() == together.state() | one.state()
    feed(one, [1.0])
    results = [losses.take() for losses in (together, broken)]
    assert results[0] == results[1]


def test_the_first_loss_that_is_not_finite_is_named_although_later_ones_were_added():
    losses = Losses(lambda step: f"sample_{step}")
    feed(losses, [1.0, float("inf"), float("nan")], wait=True)
    with pytest.raises(NonFiniteError, match=r"the loss is inf at step 1 \(lr 0.010000, samples sample_1\)"):
        losses.take()


def test_speed_is_counted_from_the_start_that_was_set(monkeypatch):
    now = iter([0.0, 0.0, 100.0, 110.0, 110.0])
    monkeypatch.setattr("deeplab.monitor.time.monotonic", lambda: next(now))
    clock = Clock(step=5, batch_size=8)
    clock.start(5)  # a hundred seconds of compiling were before
    assert clock.mean_speed(15) == pytest.approx(8.0)
    assert clock.images_per_second(15) == pytest.approx(8.0)


def test_the_peak_of_memory_is_that_of_the_process():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**26)  # 256 MB
    assert peak_memory(torch.device("cpu")) >= max(before, held.nbytes)


def test_the_peak_of_a_gpu_can_be_forgotten(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    for name in ("cpu", "cuda:1"):
        forget_peak(torch.device(name))
    assert reset == [torch.device("cuda:1")]


def test_the_time_spent_waiting_is_that_of_slow_items(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("deeplab.monitor.time.monotonic", lambda: now[0])

    clock = Clock(step=0, batch_size=1)
    for _ in range(3):
        with clock.waiting():
            now[0] += 1.0
        now[0] += 3.0  # the step
    assert clock.waited_share() == pytest.approx(0.25)

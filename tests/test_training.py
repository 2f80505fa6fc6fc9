from dataclasses import replace

import pytest
import torch

from deeplab import training
from deeplab.checkpoint import load_checkpoint
from deeplab.data import StepKeys
from deeplab.errors import NonFiniteError, SettingsError
from deeplab.model import DeepLabV3
from deeplab.ranks import Ranks
from deeplab.store import Store
from deeplab.training import poly_lr, total_steps
from pipeline.settings.params import load_params
from tests.fitting import PACE, assert_equal, run, small
from tests.tiny import augment_config, model_config, recipe_config, tiny_cell, train_config, write_store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("images", "batch", "epochs", "steps"), [
    (10582, 16, 60, 39_660), (20210, 16, 130, 164_190), (2975, 8, 220, 81_620),
])  # fmt: skip
def test_the_schedules_have_the_published_length(images, batch, epochs, steps):
    assert total_steps(images, recipe_config(batch_size=batch, epochs=epochs)) == steps


def test_the_learning_rate_falls_from_lr_to_min_lr():
    rates = [poly_lr(step, 1000, recipe_config(), train_config()) for step in (0, 1, 500, 999)]
    expected = [0.01, 0.0099 * (1 - 0.001) ** 0.9 + 1e-4, 0.0099 * 0.5**0.9 + 1e-4, 0.0099 * 0.001**0.9 + 1e-4]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_a_split_smaller_than_a_batch_is_refused():
    with pytest.raises(SettingsError, match="batch_size: got 4, but 'train' has only 3 images"):
        total_steps(3, recipe_config())


def test_one_step_is_plain_sgd_with_the_auxiliary_loss_at_its_weight(split, tmp_path, monkeypatch):
    """Against torch's own optimizer, written out, on the batch that the loop saw."""
    from deeplab.losses.cross_entropy import cross_entropy
    from deeplab.step import valid_pixels

    seen = []
    original = training.train_step

    def watched(*arguments):
        images, masks = arguments[3]
        seen.append(
            (images, masks.clone(), arguments[1].param_groups[0]["lr"])
        )  # the memory of the masks is used again
        return original(*arguments)

    monkeypatch.setattr(training, "train_step", watched)
    network = small()
    network.features[3].p = 0.0
    cell = tiny_cell(recipe=recipe_config(epochs=1), train=train_config(auxiliary_weight=0.4))
    reference = small()
    reference.features[3].p = 0.0
    _, state, _, _ = run(tmp_path / "run", split, network, cell=cell)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for images, masks, lr in seen:
        optimizer.param_groups[0]["lr"] = lr
        main, extra = reference(images)
        optimizer.zero_grad()
        count = valid_pixels(masks)
        (cross_entropy(main, masks, count) + 0.4 * cross_entropy(extra, masks, count)).backward()
        optimizer.step()
    assert len(seen) == 3
    torch.testing.assert_close(state, reference.state_dict())


def test_the_real_network_learns(split, tmp_path):
    torch.manual_seed(0)
    cell = tiny_cell(recipe=recipe_config(epochs=4))
    *_, reports = run(tmp_path / "run", split, DeepLabV3(model_config(), 3), cell=cell)
    assert reports[-1].step == reports[-1].steps == 12
    assert reports[-1].loss < reports[0].loss


def test_a_loss_that_is_not_finite_stops_with_step_and_samples_and_keeps_the_last_checkpoint(split, tmp_path):
    network = small()
    calls = iter(range(100))

    def poison(module, inputs, output):
        return output * float("nan") if next(calls) == 4 else output  # call 0 is the step that is tried

    network.features.register_forward_hook(poison)
    with pytest.raises(
        NonFiniteError, match=r"the loss is nan at step 3 \(lr 0\.0\d+, samples (train_\d+, ){3}train_\d+\)"
    ):
        run(tmp_path / "run", split, network, pace=replace(PACE, checkpoint_every=1e-9))
    assert load_checkpoint(tmp_path / "run")["step"] == 3


def test_a_weight_that_is_not_finite_is_never_saved(split, tmp_path):
    network = small()
    calls = iter(range(100))

    def poison():
        if next(calls) == 2:
            network.head.weight.data.fill_(float("inf"))
        return False

    with pytest.raises(NonFiniteError, match=r"the loss was finite, a weight is not at step 2"):
        run(tmp_path / "run", split, network, pace=replace(PACE, checkpoint_every=1e-9), stop=poison)
    assert load_checkpoint(tmp_path / "run")["step"] == 2


def test_a_batch_that_is_all_ignored_does_not_stop_the_run(tmp_path):
    folder = write_store(tmp_path / "store", {"train": 4})
    masks = folder / "masks.bin"
    masks.write_bytes(b"\xff" * masks.stat().st_size)
    finished, state, _, reports = run(tmp_path / "run", Store(folder).split("train"))
    assert finished
    assert [report.loss for report in reports] == [0.0]
    assert all(value.isfinite().all() for value in state.values())


def test_validation_is_written_to_the_history_and_changes_nothing(split, tmp_path):
    plain = run(tmp_path / "plain", split)
    pace = replace(PACE, validate_every=1)
    watched = run(tmp_path / "watched", split, pace=pace, validate=lambda network: network.eval() and 0.25)
    assert_equal(watched[1], plain[1])
    rows = [line.split(",") for line in watched[2].decode().splitlines()[1:]]
    assert [row[4] for row in rows if row[0] in ("3", "6")] == ["0.250000", "0.250000"]


def test_reduced_precision_trains(split, tmp_path):
    cell = tiny_cell(train=train_config(precision="bf16"))
    finished, state, *_ = run(tmp_path / "run", split, cell=cell)
    assert finished
    assert state["head.weight"].dtype == torch.float32


def test_an_unknown_loss_is_refused(split, tmp_path):
    with pytest.raises(SettingsError, match="train.loss: got 'hinge', expected one of cross_entropy"):
        run(tmp_path / "run", split, cell=tiny_cell(train=train_config(loss="hinge")))


def test_an_unknown_augmentation_is_refused(split, tmp_path):
    with pytest.raises(SettingsError, match="augment.transforms: got 'blur', expected one of photometric"):
        run(tmp_path / "run", split, cell=tiny_cell(augment=augment_config(transforms=("photometric", "blur"))))


def test_after_a_few_steps_the_plan_says_what_lies_ahead(split, tmp_path):
    plans = []
    run(tmp_path / "run", split, cell=tiny_cell(recipe=recipe_config(epochs=10)), plan=plans.append)
    (plan,) = plans
    assert (plan.step, plan.steps) == (20, 30)
    assert plan.images_per_second > 0
    assert plan.seconds_left == pytest.approx(10 * 4 / plan.images_per_second)
    assert 0 <= plan.waiting <= 1
    assert plan.peak_memory > 2**20


def test_a_short_run_is_planned_at_its_end(split, tmp_path):
    plans = []
    run(tmp_path / "run", split, plan=plans.append)
    assert [(plan.step, plan.seconds_left) for plan in plans] == [(6, 0.0)]


def test_trying_a_step_first_changes_nothing(split, tmp_path, monkeypatch):
    tried = run(tmp_path / "tried", split)
    monkeypatch.setattr(training, "rehearse", lambda *_: None)
    untried = run(tmp_path / "untried", split)
    assert_equal(tried[1:3], untried[1:3])


def test_a_first_step_that_cannot_work_ends_before_anything_is_written(split, tmp_path):
    network = small()
    network.head.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"loss or gradient is NaN or infinite when tried at step 0 .*train_\d+"):
        run(tmp_path / "run", split, network)
    assert not list((tmp_path / "run").glob("step-*"))


def test_a_spike_is_counted_in_the_history(split, tmp_path):
    network, calls = small(), iter(range(100))

    def leap(module, inputs, output):
        return (output[0] * 1000, output[1]) if next(calls) == 24 else output  # call 0 is the step that is tried

    network.register_forward_hook(leap)
    *_, history, _ = run(tmp_path / "run", split, network, cell=tiny_cell(recipe=recipe_config(epochs=10)))
    spikes = {row.split(",")[0]: row.split(",")[5] for row in history.decode().splitlines()[1:]}
    assert {step for step, count in spikes.items() if count != "0"} == {"24"}


def test_every_epoch_goes_through_the_samples_in_an_order_of_its_own_that_the_seed_decides():
    keys = [key for step in StepKeys(13, 4, seed=3, start=0, stop=6) for key in step]
    epochs = [[index for epoch, index in keys if epoch == number] for number in (0, 1)]
    assert epochs == [[0, 9, 7, 5, 3, 1, 8, 10, 2, 4, 11, 12], [4, 11, 9, 5, 7, 8, 10, 6, 3, 0, 2, 12]]


@pytest.mark.parametrize("name", ["voc_resnet50_os8", "ade20k_resnet50_os16", "cityscapes_resnet101_os8"])
def test_the_rates_of_the_published_cells_are_pinned(name):
    cell = load_params().cell(name)
    count = {"voc": 10582, "ade20k": 20210, "cityscapes": 2975}[cell.dataset]
    steps = total_steps(count, cell.recipe)
    rates = [poly_lr(step, steps, cell.recipe, cell.train) for step in (0, 1, steps // 2, steps - 1)]
    assert steps == {"voc": 39_660, "ade20k": 164_190, "cityscapes": 81_620}[cell.dataset]
    assert rates == pytest.approx(
        [0.01, 0.0099 * (1 - 1 / steps) ** 0.9 + 1e-4, 0.0099 * 0.5**0.9 + 1e-4, 0.0099 / steps**0.9 + 1e-4], rel=1e-12
    )
    assert cell.train.auxiliary_weight == 0.4


def test_the_network_is_compiled_when_asked_and_its_weights_keep_their_names(split, tmp_path, monkeypatch):
    compiled = []
    eager = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or eager(network, backend="eager"))
    plain = run(tmp_path / "plain", split)
    assert compiled == []
    other = run(tmp_path / "compiled", split, cell=tiny_cell(train=train_config(compile=True)))
    assert len(compiled) == 1
    torch.testing.assert_close(other[1], plain[1])


def test_compiling_with_several_gpus_is_refused(split, tmp_path):
    cell = tiny_cell(train=train_config(compile=True))
    with pytest.raises(SettingsError, match="compile: got true with runtime.gpus_per_cell above 1"):
        run(tmp_path / "run", split, cell=cell, ranks=Ranks(0, 2))


def test_the_peak_of_memory_is_that_of_steps_and_not_of_choosing_kernels(split, tmp_path, monkeypatch):
    order = []
    for name in ("rehearse", "forget_peak", "train_step"):
        original = getattr(training, name)
        monkeypatch.setattr(
            training, name, lambda *a, name=name, original=original: (order.append(name), original(*a))[1]
        )
    run(tmp_path / "run", split)
    assert order == ["rehearse", "forget_peak", *["train_step"] * 6]

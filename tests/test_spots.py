"""The states that a training keeps, and the steps that are repeated from them: whatever was changed is found and named."""

import json
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import active_children

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from deeplab import spots
from deeplab.checkpoint import load_checkpoint
from deeplab.errors import DataError
from deeplab.spots import pack, planned, unpack
from deeplab.store import MANIFEST, MASKS, Store, checksum
from pipeline.cli import grid
from pipeline.errors import MismatchError, ParamsError
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.stages import train
from pipeline.training.facts import flat_settings
from pipeline.training.provenance import differing, file_sha256, packages
from pipeline.verify.training import repeated
from tests.fitting import PACE, assert_equal, run, small
from tests.tiny import tiny_cell, tiny_params, write_store

TRAINING = pytest.mark.fault(
    "input",
    "a result that its training did not give",
    "other weights, another learning rate, one changed label, an edited state; run.json left alone, and made to agree",
    "`grid verify --training` repeats steps from the kept states and names it in one line",
)
CELL = "tiny_os8"  # at output stride 16


@pytest.fixture
def near(monkeypatch):
    """Pairs two steps apart, because the trainings of these tests have six."""
    monkeypatch.setattr(spots, "APART", 2)


@pytest.mark.parametrize(
    ("steps", "count", "pairs"),
    [
        (64, 2, [(12, 32), (44, 64)]),
        (300, 3, [(80, 100), (180, 200), (280, 300)]),
        (40, 3, [(0, 20), (20, 40)]),
        (39, 2, [(19, 39)]),
        (6, 2, [(0, 6)]),
        (64, 0, []),
    ],
)
def test_pairs_are_spread_over_a_training_and_the_last_one_ends_with_it(steps, count, pairs):
    assert planned(steps, count) == pairs


def kept(folder):
    return {path.name: path.read_bytes() for path in (folder / "spots").iterdir()}


@pytest.mark.usefixtures("near", "one_thread")
def test_keeping_spots_moves_no_bit(tmp_path, split):
    without = run(tmp_path / "without", split)
    with_spots = run(tmp_path / "with", split, pace=replace(PACE, spots=3))
    assert_equal(with_spots[1], without[1])
    assert with_spots[2] == without[2]
    assert not (tmp_path / "without/spots").exists()
    assert len(kept(tmp_path / "with")) == 6


@pytest.mark.fault(
    "kill",
    "a training is killed or stopped between two states that it keeps",
    "stopped after each step, then killed after each later one",
    "it keeps the same states, bit for bit, as an unbroken one",
)
@pytest.mark.usefixtures("near", "one_thread")
@pytest.mark.parametrize("stop", range(1, 6))
def test_a_training_that_was_killed_keeps_the_same_spots(tmp_path, split, stop):
    class Killed(BaseException):
        pass

    def killed(progress):
        if progress.step > stop:
            raise Killed

    pace = replace(PACE, spots=2, log_every=1)
    run(tmp_path / "unbroken", split, pace=pace)
    folder, steps = tmp_path / "broken", iter(range(1, 7))
    assert not run(folder, split, pace=pace, stop=lambda: next(steps) == stop)[0]
    with pytest.raises(Killed):
        run_reported(folder, split, pace, killed)
    assert run(folder, split, pace=pace)[0]
    assert kept(folder) == kept(tmp_path / "unbroken")


def run_reported(folder, split, pace, report):
    from deeplab.training import Job, Watch, fit

    job = Job(
        network=small(), split=split, cell=tiny_cell(), seed=3, device=torch.device("cpu"), folder=folder, pace=pace
    )
    fit(job, Watch(report=report))


@pytest.mark.usefixtures("near", "one_thread")
def test_a_state_comes_back_as_it_was_and_nothing_else_does(tmp_path, split):
    run(tmp_path / "a", split)
    state = load_checkpoint(tmp_path / "a")
    file = tmp_path / "state.safetensors"
    file.write_bytes(pack(state))
    network = small().to(memory_format=torch.channels_last)
    back = unpack(file, 6, network, tiny_cell().train)
    assert pack(back) == pack(state)
    (kernel, *_) = back["optimizer"]["state"].values()
    assert kernel["momentum_buffer"].is_contiguous(memory_format=torch.channels_last)  # as a fused step needs it
    with pytest.raises(DataError, match=r"state\.safetensors: not the state of such a network after step 5"):
        unpack(file, 5, network, tiny_cell().train)
    file.write_bytes(pack(state)[:-9])
    with pytest.raises(DataError, match=r"state\.safetensors: not a state of such a training"):
        unpack(file, 6, network, tiny_cell().train)


def settings(place, lr=0.01, spots=2, seeds=(0,)):
    """A params.yaml with a network of 0.3 million parameters."""

    def edit(params):
        params["grid"][CELL] |= {"backbone": "mobilenetv3_small_050", "output_stride": 16}
        params["recipes"]["tiny"]["lr"] = lr
        params["runtime"]["spots"] = spots
        params["seeds"] = list(seeds)

    (place / "params.yaml").unlink(missing_ok=True)
    tiny_params(place / "params.yaml", edit)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A folder with a trained cell that kept two spots."""
    place = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    settings(place)
    write_store(place / "data/tiny", {"train": 12, "val": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spots, "APART", 2)
        train.run(CELL, Places(place))
    torch.set_num_threads(threads)
    return place


@pytest.fixture
def place(trained_once, tmp_path, near, one_thread):
    """A copy of it, whose files may be replaced, not written to."""
    shutil.copytree(trained_once, tmp_path / "here", copy_function=os.link)
    return tmp_path / "here"


def facts_of(place):
    return json.loads((place / f"runs/{CELL}/run.json").read_text())["seeds"]["0"]


def forge(place, **facts):
    """Replace values of run.json."""
    replace_file(
        place / f"runs/{CELL}/run.json",
        json.dumps({"cell": CELL, "dataset": "tiny", "seeds": {"0": facts_of(place) | facts}}).encode(),
    )


def replace_file(path, content):
    path.unlink()
    path.write_bytes(content)


def check(place):
    return list(repeated([CELL], Places(place)))


def wrong(place):
    with pytest.raises(MismatchError) as error:
        check(place)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_honest_training_gives_the_same_bits_again(place, monkeypatch):
    assert sorted(path.name for path in (place / f"runs/{CELL}/weights/spots").iterdir()) == [
        "seed0-step1.safetensors",
        "seed0-step4.safetensors",
    ]
    monkeypatch.chdir(place)
    said = CliRunner().invoke(grid, ["verify", "--training"])  # all cells that kept some
    assert (said.exit_code, said.output) == (0, f"{CELL} seed 0: steps 1 to 3, 4 to 6 of 6 again: the same bits\n")


@TRAINING
@pytest.mark.parametrize("forged", [False, True])
def test_swapped_weights_are_found(place, forged):
    file = place / f"runs/{CELL}/weights/seed0.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"] += 1e-6
    file.unlink()
    save_file(tensors, file)
    if not forged:
        assert f"{file}: another SHA-256 than in {place}/runs/{CELL}/run.json" in wrong(place)
        return
    forge(place, weights={"file": file.name, "sha256": file_sha256(file)})
    assert "steps 4 to 6 again: they do not end at the weights in" in wrong(place)


@TRAINING
@pytest.mark.parametrize("forged", [False, True])
def test_another_learning_rate_is_found(place, forged):
    settings(place, lr=0.0101)
    if not forged:
        assert "trained with different settings: lr (0.01 -> 0.0101). Undo the change" in wrong(place)
        return
    cell = load_params(place / "params.yaml").cell(CELL)
    fingerprint = facts_of(place)["fingerprint"] | {"cell": cell.fingerprint}
    forge(place, fingerprint=fingerprint, settings=flat_settings(cell, 0))
    assert "steps 1 to 3 again: the loss of step 3 is " in (said := wrong(place))
    assert "after 1 that agree: lr, momentum, weight decay or samples differ" in said


@TRAINING
@pytest.mark.parametrize("forged", [False, True])
def test_one_changed_label_is_found(place, forged):
    store = place / "data/tiny"
    labels = bytearray((store / MASKS).read_bytes())
    record = Store(store).records[5]
    place_of_label = record.offset + 20 * record.width + 24
    labels[place_of_label] = (labels[place_of_label] + 1) % 3
    replace_file(store / MASKS, bytes(labels))
    if not forged:
        assert f"{CELL}: no data to repeat its training on: {store}: 1 samples differ" in (said := wrong(place))
        assert f"the first is {record.id}" in said
        return
    manifest = json.loads((store / MANIFEST).read_text())
    split = Store(store).split("train")
    manifest["samples"][5]["checksum"] = checksum(split.image(5), split.mask(5))
    replace_file(store / MANIFEST, json.dumps(manifest).encode())
    assert f"trained on other data than {store}" in wrong(place)
    forge(place, fingerprint=facts_of(place)["fingerprint"] | {"data": Store(store).fingerprint})
    assert "again: the loss of step " in wrong(place)


@TRAINING
@pytest.mark.parametrize("forged", [False, True])
def test_an_edited_state_is_found(place, forged):
    file = place / f"runs/{CELL}/weights/spots/seed0-step4.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of a number that is far below its neighbours, or not: a bit is a bit
    replace_file(file, bytes(content))
    if not forged:
        assert f"{file}: another SHA-256 than in" in wrong(place)
        return
    first, last = facts_of(place)["spots"]
    forge(place, spots=[first, last | {"sha256": file_sha256(file)}])
    assert "steps 4 to 6 again: the " in wrong(place)


@TRAINING
def test_a_last_pair_that_was_left_out_is_found(place):
    forge(place, spots=facts_of(place)["spots"][:1])
    assert f"{place}/runs/{CELL}/run.json: without weights, losses, or a spot that ends with step 6" in wrong(place)


@pytest.mark.parametrize(("factor", "accepted"), [(1 + 1e-6, True), (1.01, False)])
def test_other_versions_are_named_before_a_bit_and_bounded(place, factor, accepted):
    first, last = facts_of(place)["spots"]
    forge(
        place,
        spots=[first | {"losses": [loss * factor for loss in first["losses"]]}, last],
        versions=facts_of(place)["versions"] | {"numpy": "1.0.0"},
    )
    if accepted:
        (said,) = check(place)
        assert "6 of 6 again: not the same bits (numpy 1.0.0, now " in said
        assert said.endswith("), largest relative difference 1.0e-06, bound 1e-03")
    else:
        assert "steps 1 to 3 again (numpy 1.0.0, now " in wrong(place)


def test_a_training_without_spots_says_so(place):
    facts = facts_of(place)
    forge(place, spots=[])
    assert "its training kept no spots: it is older, runtime.spots was 0" in wrong(place)
    old = {key: value for key, value in facts.items() if key not in ("spots", "versions", "processor")}
    replace_file(
        place / f"runs/{CELL}/run.json", json.dumps({"cell": CELL, "dataset": "tiny", "seeds": {"0": old}}).encode()
    )
    assert "its training kept no spots" in wrong(place)
    assert list(repeated([], Places(place))) == ["no training here kept spots"]
    (place / f"runs/{CELL}/run.json").unlink()
    assert f"{CELL}: {place}/runs/{CELL}/run.json not found" in wrong(place)


def test_fast_and_training_exclude_each_other(place, monkeypatch):
    monkeypatch.chdir(place)
    said = CliRunner().invoke(grid, ["verify", "--fast", "--training"])
    assert isinstance(said.exception, ParamsError)


def test_the_environment_is_that_of_the_lock_or_a_list_of_packages(tmp_path):
    lock = tmp_path / "run.txt"
    lock.write_text(
        "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:0\nnumpy==2.5.5 ; python\npy-yaml==1\n"
    )
    locked = packages({"numpy": "2.4.6", "Py_YAML": "1", "pytest": "9"}, lock)  # what is not in the lock is of no use
    assert locked == packages({"numpy": "2.5.5"}, lock)
    assert locked.startswith("lock ")
    own = packages({"numpy": "2.4.5", "py-yaml": "1"}, lock)
    assert own.startswith("list ")
    assert own == packages({"py.yaml": "1", "numpy": "2.4.5"}, tmp_path / "none")
    assert own != packages({"numpy": "2.4.5", "py-yaml": "2"}, lock)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"torch": "2.15.0", "packages": "lock a"}, ""),
        ({"torch": "2.15.0", "packages": "lock b"}, "other packages"),
        ({"torch": "2.14.0", "numba": "0", "packages": "lock b"}, "torch 2.14.0, now 2.15.0; numba 0, now 1"),
        ({"CUDA": "13.2"}, ""),
        ({}, ""),
    ],
)
def test_versions_that_differ_are_named(then, said):
    assert differing(then, {"torch": "2.15.0", "numba": "1", "packages": "lock a"}) == said


def test_the_facts_have_the_versions_that_move_bits(trained_once):
    facts = facts_of(trained_once)
    assert set(facts["versions"]) == {"torch", "timm", "numpy", "opencv-python-headless", "numba", "packages"}
    assert facts["versions"]["torch"] == version("torch")
    assert facts["processor"].endswith(f"({torch.backends.cpu.get_cpu_capability()})")


def test_spots_zero_keeps_none(tmp_path):
    settings(tmp_path, spots=0)
    write_store(tmp_path / "data/tiny", {"train": 4, "val": 3})
    train.run(CELL, Places(tmp_path))
    assert [path.name for path in (tmp_path / f"runs/{CELL}/weights").iterdir()] == ["seed0.safetensors"]
    assert facts_of(tmp_path)["spots"] == []


@pytest.mark.usefixtures("one_thread")
def test_several_trainings_are_checked_in_processes_of_their_own(tmp_path, monkeypatch):
    settings(tmp_path, spots=1, seeds=(0, 1))
    write_store(tmp_path / "data/tiny", {"train": 12, "val": 3})
    train.run(CELL, Places(tmp_path))
    left = sorted((tmp_path / "runs").iterdir())
    monkeypatch.setattr("pipeline.verify.workers.find_slots", lambda *_: [{}, {}])
    monkeypatch.setattr(spots, "APART", 2)  # in this process alone, where the pair from 0 to 6 would be refused
    again = "steps 0 to 6 of 6 again: the same bits"
    assert check(tmp_path) == [f"{CELL} seed 0: {again}", f"{CELL} seed 1: {again}"]
    weights = tmp_path / f"runs/{CELL}/weights/seed0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{CELL} seed 0: {weights}: another SHA-256 than in" in wrong(tmp_path)
    assert active_children() == []
    assert sorted((tmp_path / "runs").iterdir()) == left

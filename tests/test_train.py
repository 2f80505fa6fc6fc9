import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from deeplab.errors import DataError
from deeplab.store import Store
from pipeline import files, process
from pipeline.errors import BusyError, ParamsError, StoppedError
from pipeline.settings.code import code_of
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.stages import check, train
from pipeline.training import publish, reuse, seed
from pipeline.training.facts import Facts, WeightsFile
from pipeline.training.provenance import file_sha256, git, git_state
from pipeline.training.reuse import take_trained
from tests.tiny import tiny_params, write_store


@pytest.fixture
def place(tmp_path):
    """A folder with settings and a store."""
    tiny_params(tmp_path / "params.yaml")
    write_store(tmp_path / "data/tiny", {"train": 12, "val": 3})
    return tmp_path


def run(place, name="tiny_os8"):
    train.run(name, Places(place))


def test_a_trained_cell_has_weights_history_and_the_facts_of_its_run(place):
    run(place)
    cell = load_params(place / "params.yaml").cells["tiny_os8"]
    weights = place / "runs/tiny_os8/weights/seed0.safetensors"
    facts = json.loads((place / "runs/tiny_os8/run.json").read_text())["seeds"]["0"]
    assert facts["weights"] == {"file": "seed0.safetensors", "sha256": file_sha256(weights)}
    assert facts["fingerprint"]["cell"] == cell.fingerprint
    assert facts["iterations"] == 6
    assert facts["images_per_second"] > 0
    with safe_open(weights, "pt") as file:
        metadata = json.loads(file.metadata()["about"])
        assert set(file.metadata()) == {"about"}  # several keys would be written in another order each time
    assert metadata["cell"] == cell.fingerprint
    assert metadata["code"] == code_of("train", load_params(place / "params.yaml"), Places(place), "tiny_os8")
    assert metadata["classes"] == ["class 0", "class 1", "class 2"]
    rows = (place / "runs/tiny_os8/history.csv").read_text().splitlines()
    assert rows[0] == "seed,step,epoch,train/loss,train/lr,val/mIoU,train/spikes"
    assert [row.split(",")[1] for row in rows[1:]] == list("123456")
    assert not (place / "runs/.resume/tiny_os8").exists()


def test_class_weights_and_what_the_validation_split_decided_are_facts_of_the_run(place):
    settings = {"loss": "ohem+dice", "class_weights": "median_frequency", "keep": "best", "ema": 0.9}
    tiny_params(place / "params.yaml", lambda params: params["train"].update(settings))
    run(place)
    facts = json.loads((place / "runs/tiny_os8/run.json").read_text())["seeds"]["0"]
    assert sorted(facts["class_weights"])[1] == 1.0
    assert (facts["chosen"]["steps"], facts["departs"]) == (6, "chosen on val: optimistic")
    rows = [row.split(",") for row in (place / "runs/tiny_os8/history.csv").read_text().splitlines()[1:]]
    best = max((row for row in rows if row[5]), key=lambda row: float(row[5]))
    assert (facts["chosen"]["step"], round(facts["chosen"]["miou"], 6)) == (int(best[1]), float(best[5]))


def test_each_seed_is_trained_and_gives_other_weights(place):
    tiny_params(place / "params.yaml", lambda params: params.update(seeds=[0, 5]))
    run(place)
    assert sorted(path.name for path in (place / "runs/tiny_os8/weights").iterdir()) == [
        "seed0.safetensors",
        "seed5.safetensors",
        "spots",
    ]
    one, other = (file_sha256(place / f"runs/tiny_os8/weights/seed{seed}.safetensors") for seed in (0, 5))
    assert one != other
    assert {row.split(",")[0] for row in (place / "runs/tiny_os8/history.csv").read_text().splitlines()[1:]} == {
        "0",
        "5",
    }


@pytest.fixture
def one_seed(one_seed_once, place):
    """A copy of it, for one test."""
    shutil.rmtree(place)
    shutil.copytree(one_seed_once, place)
    return place


@pytest.fixture(scope="module")
def one_seed_once(tmp_path_factory):
    """A project whose only cell is trained with seed 0 and recorded by DVC, which has deleted the result."""
    place = tmp_path_factory.mktemp("once")
    tiny_params(place / "params.yaml")
    write_store(place / "data/tiny", {"train": 12, "val": 3})
    check.run(Places(place))
    outs = ["runs/tiny_os8/weights", "runs/tiny_os8/run.json", "runs/tiny_os8/history.csv"]
    stage = {"cmd": "true", "params": ["seeds", "grid.tiny_os8"], "outs": outs}
    (place / "dvc.yaml").write_text(json.dumps({"stages": {"train": {"foreach": {"tiny_os8": 0}, "do": stage}}}))
    run(place)
    for words in (["init", "--no-scm", "-q"], ["commit", "-f", "-q", "train@tiny_os8"]):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=place, check=True)
    shutil.copytree(place / "runs/tiny_os8", place / "before")
    shutil.rmtree(place / "runs/tiny_os8")
    return place


@pytest.fixture
def trained(monkeypatch):
    """The seeds that are trained from now on."""
    found, original = [], train.train_seed
    monkeypatch.setattr(train, "train_seed", lambda cell, seed: [found.append(seed), original(cell, seed)])
    return found


def run_seeds(place, *numbers):
    tiny_params(place / "params.yaml", lambda params: params.update(seeds=list(numbers)))
    run(place)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_seed_is_trained_alone_and_all_bits_are_those_of_training_both(one_seed, trained, tmp_path_factory):
    run_seeds(one_seed, 0, 1)
    assert trained == [1]
    both = tmp_path_factory.mktemp("both")
    write_store(both / "data/tiny", {"train": 12, "val": 3})
    run_seeds(both, 0, 1)
    assert trained == [1, 0, 1]
    spots = [f"weights/spots/seed{seed}-step0.safetensors" for seed in (0, 1)]
    for file in ("weights/seed0.safetensors", "weights/seed1.safetensors", "history.csv", *spots):
        assert (one_seed / "runs/tiny_os8" / file).read_bytes() == (both / "runs/tiny_os8" / file).read_bytes()
    facts, before = (json.loads((one_seed / place / "run.json").read_text()) for place in ("runs/tiny_os8", "before"))
    assert facts["seeds"]["0"] == before["seeds"]["0"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_seeds_of_other_settings_and_damaged_ones_are_not_taken_and_neither_are_the_same_seeds(one_seed):
    places, files = Places(one_seed), sorted(path for path in (one_seed / ".dvc/cache").rglob("*") if path.is_file())
    inputs = train.read_inputs("tiny_os8", places, Store(places.store("tiny")).fingerprint)

    def taken(inputs, *numbers):
        folder = one_seed / f"taken{len(list(one_seed.glob('taken*')))}"
        folder.mkdir()
        take_trained("tiny_os8", numbers, inputs, places, lambda seed: folder / str(seed))
        return [path.name for path in folder.iterdir()]

    assert taken(inputs, 0, 1) == []  # `seeds` are the same as before: somebody wants it trained again
    tiny_params(one_seed / "params.yaml", lambda params: params["grid"]["tiny_os8"].update(seeds=[0]))
    assert taken(inputs, 0) == ["0"]  # they are now those of the row
    tiny_params(one_seed / "params.yaml", lambda params: params.update(seeds=[0, 1]))
    assert taken(inputs, 0, 1) == ["0"]
    assert taken(replace(inputs, code="other"), 0, 1) == []
    assert taken(replace(inputs, data="other"), 0, 1) == []
    assert taken(replace(inputs, cell=replace(inputs.cell, dataset="other")), 0, 1) == []
    weights = max(files, key=lambda path: path.stat().st_size)
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert taken(inputs, 0, 1) == []
    weights.unlink()
    assert taken(inputs, 0, 1) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_finished_seeds_are_taken_in_a_project_below_the_root_of_the_repository(one_seed_once, tmp_path, monkeypatch):
    place = tmp_path / "examples/tiny"
    shutil.copytree(one_seed_once, place)
    (place / ".dvc").rename(tmp_path / ".dvc")
    monkeypatch.chdir(place)  # as a stage runs
    places = Places()
    inputs = train.read_inputs("tiny_os8", places, Store(places.store("tiny")).fingerprint)
    tiny_params(place / "params.yaml", lambda params: params.update(seeds=[0, 1]))
    take_trained("tiny_os8", (0, 1), inputs, places, lambda seed: tmp_path / f"seed{seed}")
    assert (tmp_path / "seed0/weights.safetensors").exists()


def test_a_seed_that_is_taken_is_in_its_folder_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    facts = Facts(
        cell="a",
        dataset="b",
        seed=0,
        started="now",
        iterations=1,
        fingerprint={},
        settings={},
        weights=WeightsFile(file="seed0.safetensors", sha256=""),
    )

    def taken():
        reuse.write_seed(tmp_path / "work/seed0", facts, {"seed0.safetensors": b"x"}, ["seed,step", "0,1"])

    with monkeypatch.context() as patch:
        patch.setattr(reuse, "write_json", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            taken()
    assert list((tmp_path / "work").iterdir()) == []
    (tmp_path / "work/.seed0.part").mkdir()  # of a kill
    taken()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["seed0"]
    assert (tmp_path / "work/seed0/history.csv").read_text() == "step\n1\n"


def test_a_signal_saves_and_the_same_command_ends_where_an_unbroken_run_does(place, monkeypatch, capsys):
    import deeplab.training

    run(place)
    unbroken = (
        load_file(place / "runs/tiny_os8/weights/seed0.safetensors"),
        (place / "runs/tiny_os8/history.csv").read_bytes(),
    )
    original, steps = deeplab.training.train_step, iter(range(100))

    def signalled(*arguments):
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(deeplab.training, "train_step", signalled)
    with pytest.raises(StoppedError, match="tiny_os8: stopped by a signal, state saved. Run the same command again"):
        run(place)
    run(place)
    resumed = (
        load_file(place / "runs/tiny_os8/weights/seed0.safetensors"),
        (place / "runs/tiny_os8/history.csv").read_bytes(),
    )
    assert resumed[1] == unbroken[1]
    assert all(value.equal(resumed[0][key]) for key, value in unbroken[0].items())


@pytest.mark.fault(
    "kill",
    "a training is stopped after its last step",
    "SIGTERM while it publishes",
    "the same command publishes it without training",
)
def test_a_signal_after_the_last_step_keeps_the_result_for_the_same_command(place, monkeypatch):
    """The signal may have ended DVC too, which would have recorded what is published."""
    original = publish.publish

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        original(*arguments)

    monkeypatch.setattr(train, "publish", signalled)
    with pytest.raises(StoppedError, match="tiny_os8: trained, then stopped by a signal. Run the same command again"):
        run(place)
    monkeypatch.setattr(train, "publish", original)
    monkeypatch.setattr(train, "train_seed", lambda *_: pytest.fail("trained again"))
    run(place)
    assert (place / "runs/tiny_os8/weights/seed0.safetensors").exists()
    assert not list((place / "runs/.resume").iterdir())


@pytest.mark.fault(
    "kill",
    "a training is killed after its last step",
    "between its weights and its facts",
    "the same command completes both",
)
def test_a_run_killed_between_its_weights_and_its_facts_is_completed(place, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(seed, "file_sha256", killed)
        with pytest.raises(KeyboardInterrupt):
            run(place)
    (weights,) = place.glob("runs/.resume/*/*/weights.safetensors")
    before = weights.read_bytes()
    run(place)
    assert (place / "runs/tiny_os8/weights/seed0.safetensors").read_bytes() == before
    assert json.loads((place / "runs/tiny_os8/run.json").read_text())["seeds"]["0"]["images_per_second"] > 0


@pytest.mark.fault(
    "kill",
    "a training is killed while it cleans up",
    "half of its folder left",
    "no error about it, nothing stays behind",
)
def test_a_run_that_was_killed_while_it_cleaned_up_is_followed_by_a_whole_one(place):
    """Its history may be gone and a checkpoint not, which together would be an error."""
    run(place)
    (place / "runs/.resume/.tiny_os8.gone").mkdir(parents=True)
    (place / "runs/.resume/.tiny_os8.gone/step-000000006-0123456789abcdef.pt").touch()
    run(place)
    assert not list((place / "runs/.resume").iterdir())


def test_a_changed_setting_starts_over_and_says_which(place, monkeypatch, capsys):
    import deeplab.training

    original = deeplab.training.fit
    monkeypatch.setattr(deeplab.training, "fit", lambda job, watch: original(job, replace(watch, stop=lambda: True)))
    with pytest.raises(StoppedError):
        run(place)
    monkeypatch.setattr(deeplab.training, "fit", original)
    tiny_params(place / "params.yaml", lambda params: params["recipes"]["tiny"].update(epochs=1))
    run(place)
    assert "starting over: cell.recipe.epochs (2 -> 1) changed since" in capsys.readouterr().out


def test_settings_edited_while_training_are_refused_and_nothing_is_lost(place, monkeypatch):
    import deeplab.training

    original = deeplab.training.fit

    def edits_meanwhile(*arguments, **options):
        tiny_params(place / "params.yaml", lambda params: params["train"].update(momentum=0.5))
        return original(*arguments, **options)

    monkeypatch.setattr(deeplab.training, "fit", edits_meanwhile)
    with pytest.raises(ParamsError, match=r"cell.train.momentum \(0.9 -> 0.5\) changed while the cell was trained"):
        run(place)
    assert not (place / "runs/tiny_os8").exists()
    monkeypatch.setattr(deeplab.training, "fit", lambda *_, **__: pytest.fail("trained again"))
    tiny_params(place / "params.yaml")  # the change undone
    run(place)
    assert (place / "runs/tiny_os8/weights/seed0.safetensors").exists()


@pytest.mark.fault(
    "kill",
    "two processes train one cell",
    "a second one while the lock is held",
    "it leaves with 73 and names the first",
)
def test_one_cell_is_trained_by_one_process_at_a_time(place, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    (place / "runs/.resume/tiny_os8").mkdir(parents=True)
    with (place / "runs/.resume/tiny_os8/.lock").open("w") as other:
        other.write("process 123 on somewhere")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=r"tiny_os8: already being trained \(process 123 on somewhere\)"):
            run(place)


def test_a_store_that_is_missing_or_too_small_is_refused(place):
    write_store(place / "data/tiny", {"train": 3, "val": 1})
    with pytest.raises(
        ParamsError, match="params.yaml: cell tiny_os8: batch_size: got 4, but 'train' has only 3 images"
    ):
        run(place)
    (place / "data/tiny/manifest.json").unlink()
    with pytest.raises(DataError, match="manifest.json: No such file or directory. Prepare the data set"):
        run(place)


def test_too_small_a_disk_is_found_before_the_training(place, monkeypatch):
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(OSError, match=r"0.0 GB free, expected 0.4 GB for checkpoints and weights"):
        run(place)


def test_a_mistake_is_one_line_and_an_exit_code(place):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.train", "tiny_os9"],
        cwd=place, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stderr == "error: params.yaml: grid: unknown name 'tiny_os9'; did you mean 'tiny_os8'?\n"


def test_a_second_signal_ends_the_process_at_once():
    with process.signals_noted() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.fault(
    "kill", "the workers of a killed training hold its lock", "the lock freed late", "the next one waits for it"
)
def test_the_lock_is_waited_for(tmp_path):
    """The data workers of a killed run hold its lock for some seconds."""
    other = (tmp_path / "lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    threading.Timer(0.5, other.close).start()
    with files.claimed(tmp_path / "lock", "cell"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


@pytest.mark.fault(
    "kill",
    "the lock goes while a process waits for it",
    "its folder removed",
    "one process holds the lock of the new folder",
)
def test_a_lock_whose_folder_was_removed_meanwhile_is_taken_in_the_new_one(tmp_path, monkeypatch):
    """As when the run before has just finished: two processes would else hold the lock, one of them of a file that is gone."""
    path, original = tmp_path / "cell/.lock", fcntl.flock

    def late(file, how):
        shutil.rmtree(path.parent)
        original(file, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        assert files.take(path) is None
    with files.claimed(path, "cell"):
        assert files.take(path) is None


def test_outside_of_git_the_commit_is_unknown_with_a_reason(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    state = git_state()
    assert state["commit"] == "unknown"
    assert "not a git repository" in state["why_unknown"]


def test_changed_code_and_settings_are_uncommitted_changes_also_for_a_project_in_a_subfolder(monkeypatch, tmp_path):
    project = tmp_path / "examples/one"
    for folder in ("deeplab", "pipeline", "examples/one/reports"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("deeplab/a.py", "params.yaml", "examples/one/params.yaml", "examples/one/reports/a.csv"):
        (tmp_path / file).write_text("before\n")
    monkeypatch.chdir(project)
    git("init", "-q", folder=tmp_path)
    git("add", "-A", folder=tmp_path)
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "start")
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    for file, dirty in {"params.yaml": False, "examples/one/reports/a.csv": False, "deeplab/a.py": True}.items():
        (tmp_path / file).write_text("after\n")
        assert git_state()["dirty"] is dirty
    (tmp_path / "deeplab/a.py").write_text("before\n")
    (project / "params.yaml").write_text("after\n")
    assert git_state()["dirty"]


def test_the_same_network_is_the_same_file_in_every_process(tmp_path):
    code = """if True:
        import sys, json
        from pathlib import Path
        from types import SimpleNamespace
        import torch
        from pipeline.training.publish import save_weights
        from tests.tiny import tiny_cell
        network = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(network.weight), torch.nn.init.zeros_(network.bias)
        store = SimpleNamespace(classes=("a", "b"), palette=((0, 0, 0), (9, 9, 9)))
        save_weights(network, Path(sys.argv[1]), store, tiny_cell(), {"cell": "c", "data": "d", "code": "e"})
    """
    for name in ("one", "other"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], cwd=Path(__file__).parents[1], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()

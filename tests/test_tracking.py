"""What MLflow holds of a result, and what happens when a training or a recording is interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.files import locked
from pipeline.tracking import live as mirror_module
from pipeline.tracking.client import VIEW_TAG, Experiment, lock_of, open_experiment, tracking_uri
from pipeline.tracking.live import live_run, mirror, send
from pipeline.training.curves import read_curves
from pipeline.training.facts import read_facts
from tests.records import CELL, OTHER, ROOT, Folder

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own


@pytest.fixture
def experiment(folder):
    with open_experiment("shapes", timeout=5) as experiment:
        yield experiment


def training(folder: Folder, cell: str = CELL) -> Path:
    """A folder as it is while a cell is trained."""
    path = folder.path / f"runs/.resume/{cell}/seed0-0123456789ab"
    path.mkdir(parents=True)
    facts = {name: value for name, value in folder.facts(cell).items() if name not in ("seconds", "images_per_second")}
    (path / "facts.json").write_text(json.dumps(facts))
    write_history(path, 20)
    return path


def write_history(path: Path, *steps: int) -> None:
    rows = [f"{step},0,{1 / step},0.01,{0.5 if step == 40 else ''}\n" for step in steps]
    (path / "history.csv").write_text("step,epoch,train/loss,train/lr,val/mIoU\n" + "".join(rows))
    (path / "speed.csv").write_text("".join(f"{step},12.5\n" for step in steps))


def steps(experiment: Experiment, run: str, metric: str) -> list[int]:
    return sorted(point.step for point in experiment.client.get_metric_history(run, metric))


def test_a_run_holds_params_curves_final_numbers_origin_and_artifacts(folder):
    folder.train(CELL)
    folder.evaluate(CELL)
    folder.measure(CELL, 0.5)
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        (run,) = experiment.runs()
        number = run.info.run_id
        assert run.info.run_name == CELL
        assert run.info.end_time - run.info.start_time == 12_500
        params = {"dataset": "shapes", "backbone": "resnet18", "output_stride": "8", "crop": "[64, 64]", "seed": "0"}
        assert params.items() <= run.data.params.items()
        tags = {
            "commit": "0123abcd",
            "dirty": "False",
            "torch": "2.15.0",
            "device": "cpu",
            "data_fingerprint": folder.data,
        }
        assert tags.items() <= run.data.tags.items()
        assert run.data.tags["weights_sha256"] == folder.weights(CELL, 0)["sha256"]
        assert {name: value for name, value in run.data.metrics.items() if "train" not in name} == {
            "final/mIoU": 0.5,
            "final/mIoU_low": 0.49,
            "final/mIoU_high": 0.52,
            "final/pixel_accuracy": 0.9,
            "final/mean_accuracy": 0.8,
            "final/classes_evaluated": 3,
            "perf/images_per_second": 99.5,
            "perf/seconds": 12.5,
            "model/mIoU": 0.5,
        }
        assert steps(experiment, number, "train/loss") == [20, 40, 60]
        assert steps(experiment, number, "final/mIoU") == [0]
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.source_type) == ("shapes", "local")
        assert folder.data.startswith(given.dataset.digest)
        assert len(given.dataset.digest) == 16
        assert json.loads(given.dataset.source) == {"uri": "data/shapes/manifest.json"}
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training, evaluation")]
        files = {file.path for file in experiment.client.list_artifacts(number)}
        assert files == {"classes.csv", "classes.json", "classes.png", "confusion.png", "history.csv", "overlays"}
        assert len(experiment.client.list_artifacts(number, "overlays")) == 8
        assert run.info.artifact_uri.startswith(f"file://{folder.path}/mlartifacts/deeplabv3-shapes/")


@pytest.mark.parametrize(("fingerprint", "artifacts"), [(None, {"data/card.md", "data/sheet.png"}), ("other", set())])
def test_a_run_holds_the_card_of_the_data_that_it_saw_and_of_no_other(folder, fingerprint, artifacts):
    folder.write("reports/data/shapes/card.json", {"fingerprint": fingerprint or folder.data})
    (folder.path / "reports/data/shapes/card.md").write_text("# Data card: shapes")
    (folder.path / "data/shapes/sheet.png").write_bytes(b"a picture")
    folder.measure(CELL, 0.5)
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        (run,) = experiment.runs()
        assert {file.path for file in experiment.client.list_artifacts(run.info.run_id, "data")} == artifacts


def test_the_page_of_the_runs_opens_with_columns_of_results(experiment):
    """The format is not documented; in a browser it was seen to work with MLflow 3.17."""
    (tag,) = [
        value for key, value in experiment.client.get_experiment(experiment.number).tags.items() if key == VIEW_TAG
    ]
    view = json.loads(tag)
    assert view["selectedColumns"][0] == view["orderByKey"] == "metrics.`final/mIoU`"
    assert view["runsHiddenMode"] == "SHOW_ALL"
    assert experiment.page == (
        f"#/experiments/{experiment.number}/runs?workflowType=machine_learning&viewStateShareKey=grid&compareRunsMode=TABLE"
    )


def test_a_result_continues_the_live_run_of_its_training(folder, experiment):
    folder.raw["grid"][CELL]["recipe"] = {"lr": 0.5}
    folder.write_params()
    path = training(folder)
    run = live_run(experiment, path, read_facts(path / "facts.json"))
    send(experiment, run, path)
    folder.train(CELL)
    folder.measure(CELL, 0.5)
    folder.tables()
    (found,) = experiment.runs()
    assert found.info.run_id == run
    assert (found.info.status, found.info.run_name) == ("FINISHED", f"{CELL} (lr=0.5)")
    assert found.data.tags["complete"] == "1"
    assert steps(experiment, run, "train/loss") == [20, 40, 60]


def test_facts_of_another_training_are_not_recorded_with_a_result(folder, experiment):
    folder.train(CELL)
    facts = json.loads(Path(f"runs/{CELL}/run.json").read_text())
    facts["seeds"]["0"]["weights"]["sha256"] = "of other weights"
    Path(f"runs/{CELL}/run.json").write_text(json.dumps(facts))
    folder.measure(CELL, 0.5)
    folder.tables()
    (run,) = experiment.runs()
    assert "perf/seconds" not in run.data.metrics
    assert "train/loss" not in run.data.metrics


@pytest.mark.parametrize("broken", ["add_dataset", "add_artifacts"])
@pytest.mark.fault(
    "server", "`tables` is killed while it records", "in the middle of its calls", "the next one completes the same run"
)
def test_an_interrupted_recording_is_taken_up_in_the_same_run(folder, experiment, monkeypatch, broken):
    folder.train(CELL)
    folder.evaluate(CELL)
    folder.measure(CELL, 0.5)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.tracking.runs.Recording.{broken}", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.tables()
    (begun,) = experiment.runs(complete="0")
    assert "50.00%" in folder.tables()
    (run,) = experiment.runs()
    assert run.info.run_id == begun.info.run_id
    assert steps(experiment, run.info.run_id, "train/loss") == [20, 40, 60]
    assert steps(experiment, run.info.run_id, "final/mIoU") == [0]


@pytest.mark.fault(
    "server", "a training is given up", "its folder removed", "its run ends as KILLED; those of others stay"
)
def test_a_live_run_is_killed_in_the_record_when_its_training_was_given_up(folder, experiment):
    given_up, goes_on = training(folder, CELL), training(folder, OTHER)
    for path in (given_up, goes_on):
        live_run(experiment, path, read_facts(path / "facts.json"))
    elsewhere = experiment.create("a colleague's", {"host": "another", "folder": str(given_up)}, None)
    (given_up / "facts.json").unlink()
    folder.tables()
    status = {run.info.run_name: run.info.status for run in experiment.runs()}
    assert status == {CELL: "KILLED", OTHER: "RUNNING", "a colleague's": "RUNNING"}
    assert elsewhere


@pytest.mark.fault("server", "a training is resumed", "steps made twice", "one run, each point once")
def test_only_new_points_are_sent_and_a_resumed_training_continues_its_run(folder, experiment):
    path = training(folder)
    facts = read_facts(path / "facts.json")
    run = live_run(experiment, path, facts)
    write_history(path, 20, 40, 60)
    send(experiment, run, path)
    send(experiment, run, path)
    write_history(path, 20, 40)  # resumed from a checkpoint before step 60
    experiment.sent.clear()
    assert live_run(experiment, path, facts.model_copy(update={"started": "2026-01-02T04:00:00+00:00"})) == run
    send(experiment, run, path)
    write_history(path, 20, 40, 60, 80)
    with (path / "speed.csv").open("a") as file:  # of steps that were made again after a kill
        file.write("80,13.5\n80,14.5\n")
    send(experiment, run, path)
    assert steps(experiment, run, "train/loss") == [20, 40, 60, 80]
    assert steps(experiment, run, "train/images_per_second") == [20, 40, 60, 80]
    assert steps(experiment, run, "val/mIoU") == [40]


def test_a_line_that_is_still_being_written_is_not_read(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,epoch,train/loss\n20,0,0.5\n40,0,0.1")
    assert read_curves(path) == [(20, {"train/loss": 0.5})]
    assert read_curves(tmp_path / "not there.csv") == []


@pytest.mark.fault("server", "two processes make the database", "at once", "one waits for the other")
def test_the_experiment_is_made_by_one_process_at_a_time(folder):
    opened = threading.Event()

    def open_it():
        with open_experiment("another", timeout=5):
            opened.set()

    other = threading.Thread(target=open_it)
    with locked(lock_of(tracking_uri())):
        other.start()
        assert not opened.wait(1)
    other.join(20)
    assert opened.is_set()


@pytest.mark.fault("server", "the database cannot be read", "not a database", "one warning, the training goes on")
def test_an_unusable_database_is_one_warning_during_a_training(folder, monkeypatch, capsys):
    path = training(folder)
    Path("mlflow.db").write_bytes(b"not a database" * 100)
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 4:
            raise TimeoutError("enough")

    monkeypatch.setattr(mirror_module.time, "sleep", nap)
    with pytest.raises(TimeoutError, match="enough"):
        mirror_module.follow(path, 0.5, os.getppid())
    said = capsys.readouterr().err
    assert said.startswith(f"warning: no live curves in MLflow for now: sqlite:///{folder.path}/mlflow.db: ")
    assert said.count("\n") == 1
    assert naps == [0.5] * 4


def test_the_mirror_ends_with_its_block(tmp_path):
    before = children(os.getpid())
    with mirror(tmp_path, every=600):
        (child,) = set(children(os.getpid())) - set(before)
    assert not Path(f"/proc/{child}").exists()


def test_a_mirror_that_cannot_start_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    done = []
    with mirror(tmp_path, every=600):
        done.append("trained")
    assert done == ["trained"]
    assert capsys.readouterr().err.startswith("warning: no live curves in MLflow: ")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.fault("server", "the trainer is killed while it is mirrored", "kill -9", "the mirror ends too")
def test_the_mirror_dies_with_a_trainer_that_is_killed(tmp_path):
    code = f"""
import time
from pathlib import Path
from pipeline.tracking.live import mirror
with mirror(Path({str(tmp_path)!r}), every=600):
    print("training", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as trainer:
        trainer.stdout.readline()
        deadline = time.monotonic() + 20
        while not (found := children(trainer.pid)) or not asks_for_death(found[0]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        trainer.send_signal(signal.SIGKILL)
    while Path(f"/proc/{found[0]}/cmdline").exists() and Path(f"/proc/{found[0]}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in listed]


def asks_for_death(process: int) -> bool:
    """Whether the mirror is past its start: it is nicer than the tests from then on."""
    return os.getpriority(os.PRIO_PROCESS, process) > os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.fault(
    "server", "the database is half made", "kill -9 while MLflow creates it", "the next call makes it anew"
)
def test_a_kill_while_the_database_is_made_leaves_none_and_the_next_call_makes_it(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    code = "from pipeline.tracking.client import open_experiment\nwith open_experiment('shapes', timeout=5): pass"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    maker = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".part-mlflow.db"
    while not (partial.exists() and partial.stat().st_size) and maker.poll() is None:
        time.sleep(0.001)
    maker.kill()
    maker.wait()
    assert partial.exists()  # the kill came in the middle
    assert not (tmp_path / "mlflow.db").exists()
    with open_experiment("shapes", timeout=5) as experiment:
        assert experiment.runs() == []
    assert not partial.exists()

"""What makes the runs of the table easy to find in MLflow: notes, models, and the alias of the best."""

import json
from pathlib import Path

import pytest

from pipeline.errors import ParamsError
from pipeline.tracking import ui
from pipeline.tracking.client import open_experiment, pages
from tests.records import CELL, OTHER
from tests.server import Server, answer

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own


@pytest.fixture
def folder(folder):
    """A working folder with a database of its own and two measured cells, the second the better one."""
    folder.measure(CELL, 0.5)
    folder.measure(OTHER, 0.6)
    return folder


def aliases():
    with open_experiment("shapes", timeout=5) as experiment:
        model = experiment.client.get_registered_model("deeplabv3-shapes")
        return {
            alias: experiment.client.get_model_version("deeplabv3-shapes", str(version)).tags["cell"]
            for alias, version in model.aliases.items()
        }


def models(experiment):
    return {model.name: model for model in experiment.client.search_logged_models([experiment.number])}


def test_each_run_and_the_experiment_carry_their_rows_of_the_table(folder):
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        (run,) = experiment.runs(cell=CELL)
        note = run.data.tags["mlflow.note.content"]
        assert note.startswith(
            "**50.00%** ResNet18 (OS=8, PRE=none), 64x64, LR/POLICY/BS/EPOCH: 0.02/poly/16/4, train/val"
        )
        assert folder.weights(CELL, 0)["sha256"] in note
        above = experiment.client.get_experiment(experiment.number).tags["mlflow.note.content"]
    assert above.startswith("Demo: synthetic shapes\n")
    assert f"- `{CELL}`: **50.00%**" in above
    assert f"- `{OTHER}`: **60.00%**" in above


def test_a_model_is_linked_with_its_run_its_data_and_its_version(folder):
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        model = models(experiment)[CELL]
        (run,) = experiment.runs(cell=CELL)
        assert model.source_run_id == run.info.run_id
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
        assert model.tags["weights_sha256"] == folder.weights(CELL, 0)["sha256"]
        assert json.loads(model.tags["mlflow.modelVersions"])[0]["name"] == "deeplabv3-shapes"
        (metric,) = model.metrics
        (given,) = run.inputs.dataset_inputs
        assert (metric.key, metric.value) == ("model/mIoU", 0.5)
        assert (metric.dataset_name, metric.dataset_digest) == (given.dataset.name, given.dataset.digest)


def test_the_model_has_a_signature_and_no_pickle(folder):
    folder.tables()
    (path, *_) = Path("mlartifacts").rglob("MLmodel")
    text = path.read_text()
    assert '"name": "classes"' in text
    assert '"shape": [-1, -1]' in text
    assert not [file for file in Path("mlartifacts").rglob("*") if file.suffix in (".pkl", ".pth", ".pt", ".bin")]


def test_the_best_cell_has_the_alias_until_another_is_better(folder):
    folder.tables()
    assert aliases() == {"best": OTHER}
    folder.measure(CELL, 0.7)
    folder.tables()
    assert aliases() == {"best": CELL}


def test_filling_the_table_again_makes_no_second_model(folder):
    for _ in range(2):
        folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        assert len(experiment.client.search_logged_models([experiment.number])) == 2
        assert len(experiment.client.search_model_versions("name = 'deeplabv3-shapes'")) == 2
        (run,) = experiment.runs(cell=CELL)
        assert len(run.outputs.model_outputs) == 1


def test_a_model_that_was_begun_and_never_finished_is_finished(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tracking.models.describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            folder.tables()
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        assert {str(model.status) for model in models(experiment).values()} == {"READY"}
        assert len(experiment.client.search_logged_models([experiment.number])) == 2


def fill_with_weights(folder, copied):
    folder.raw["runtime"]["log_weights"] = copied
    folder.write_params()
    weights = folder.path / f"runs/{CELL}/weights/seed0.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    folder.tables()


@pytest.mark.parametrize("wanted", [False, True])
def test_weights_are_copied_to_mlflow_only_when_params_say_so(folder, wanted):
    fill_with_weights(folder, copied=wanted)
    with open_experiment("shapes", timeout=5) as experiment:
        model = models(experiment)[CELL].model_id
        found = [file.path for file in experiment.client.list_logged_model_artifacts(model, "weights")]
    assert found == ["weights/seed0.safetensors"] * wanted


def test_a_copy_of_weights_that_was_killed_is_made_again(folder):
    fill_with_weights(folder, copied=True)
    (copy,) = Path("mlartifacts").rglob("seed0.safetensors")
    copy.write_bytes(b"wei")
    folder.tables()
    assert copy.read_bytes() == b"weights"


def test_without_a_registry_the_table_is_filled_and_a_warning_says_so(folder, monkeypatch, capsys):
    from mlflow.exceptions import MlflowException

    def refuse(*_, **__):
        raise MlflowException("no registry here")

    monkeypatch.setattr("mlflow.MlflowClient.create_registered_model", refuse)
    assert "50.00%" in folder.tables()
    assert "warning: no models in MLflow: no registry here" in capsys.readouterr().err


def test_a_live_run_that_only_repeated_a_complete_one_is_deleted(folder):
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        (run,) = experiment.runs(cell=CELL)
        import socket

        tags = {**run.data.tags, "host": socket.gethostname(), "folder": str(folder.path / "gone")}
        again = experiment.create(CELL, tags, None)
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        assert [run.info.run_id for run in experiment.runs(cell=CELL)] != [again]
        assert experiment.client.get_run(again).info.lifecycle_stage == "deleted"


def test_the_server_listens_on_this_machine_with_one_worker_and_the_addresses_are_printed(folder, monkeypatch, capfd):
    folder.tables()
    started, waiting = [], []
    monkeypatch.setattr("os.execv", lambda program, words: started.append(words))
    monkeypatch.setattr("subprocess.Popen", waiting.append)
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    ui.run(5099)
    (words,) = started
    text = " ".join(words)
    assert "--host 127.0.0.1" in text
    assert "--workers 1" in text
    assert ui.os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    (page,) = pages().values()
    assert waiting[0][-2:] == ["5099", f"deeplabv3-shapes: http://127.0.0.1:5099/{page}"]
    assert "http" not in capfd.readouterr().out


def test_the_addresses_are_printed_when_the_server_answers(capfd, monkeypatch):
    monkeypatch.setattr(ui, "die_with_parent", lambda: None)
    said = []
    with Server().running() as server:
        server.script["/health"] = [answer(b"", status=503), answer(b"OK")]
        monkeypatch.setattr(ui.time, "sleep", lambda _: said.append(capfd.readouterr().out))
        ui.announce(server.server_port, ["an address"])
    assert said == [""]
    assert capfd.readouterr().out == "an address\n"


def test_a_port_in_use_a_silent_server_and_a_missing_database_are_one_line(folder, monkeypatch):
    with pytest.raises(ParamsError, match="--port: 99999 is in use or not allowed"):
        ui.run(99999)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    with pytest.raises(OSError, match=r"^http://127\.0\.0\.1:9: .*Connection refused"):
        ui.run(5099)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    Path("mlflow.db").unlink()
    with pytest.raises(FileNotFoundError, match="no runs yet"):
        ui.run(5099)

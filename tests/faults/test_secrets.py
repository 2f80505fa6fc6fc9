"""Passwords stay where the user put them: none is repeated in a message, a record, a command line or a copy."""

import pytest

from pipeline.cluster import doctor, snapshot
from pipeline.errors import ParamsError
from pipeline.settings.params import load_params
from pipeline.tracking.client import TrackingError, open_experiment, without_password
from tests.tiny import tiny_params

SECRET = "kept-for-me"
ADDRESS = pytest.mark.fault(
    "security",
    "a password in an address",
    "in the address of the tracking server, of an archive and of a DVC remote",
    "in no message, command line, record or snapshot",
)


@pytest.mark.parametrize("password", [SECRET, f"p@{SECRET}", f"p:{SECRET}", f"%40{SECRET}"])
@ADDRESS
def test_an_address_is_shown_without_its_password(password):
    text = f"https://me:{password}@host.example:5000/a b https://{password}@other/ and c"
    assert without_password(text) == "https://host.example:5000/a b https://other/ and c"


@ADDRESS
def test_a_server_that_does_not_answer_is_told_without_the_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:p@{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as told, open_experiment("shapes", timeout=1):
        pass
    assert SECRET not in str(told.value)
    with pytest.raises(OSError, match="refused") as told:
        doctor.ask_tracking(f"http://me:p@{SECRET}@127.0.0.1:9")
    assert SECRET not in str(told.value)


@ADDRESS
def test_an_archive_with_a_password_in_its_address_is_refused_and_not_repeated(tmp_path):
    archive = {
        "name": "a.zip", "urls": [f"https://me:{SECRET}@host.example/a.zip"], "size": None, "md5": "0" * 32,
        "folders": ["a"], "max_unpacked": 1,
    }  # fmt: skip
    path = tiny_params(tmp_path / "params.yaml", lambda params: params["datasets"]["tiny"].update(archives=[archive]))
    with pytest.raises(ParamsError, match=r"datasets\.tiny\.archives\.0\.urls: .*netrc") as told:
        load_params(path)
    assert SECRET not in str(told.value)


@ADDRESS
def test_the_snapshot_of_a_cell_has_no_remote_and_none_of_its_passwords(tmp_path):
    root, folder = tmp_path / "root", tmp_path / "cell"
    for each in (root, folder):
        (each / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text('[remote "other"]\n    url = https://other.example\n')
    (root / ".dvc/config.local").write_text(
        f"[core]\n    remote = mine\n['remote \"mine\"']\n    url = https://host.example\n    password = {SECRET}\n"
        f'[remote "other"]\n    password = {SECRET}\n[cache]\n    type = copy\n'
    )
    snapshot.configure(root, folder)
    text = (folder / ".dvc/config.local").read_text()
    assert SECRET not in text
    assert "type = copy" in text
    assert str(root / ".dvc/cache") in text

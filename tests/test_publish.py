"""Others get the weights behind a table, byte for byte, and a link stands only where somebody can follow it."""

import functools
import hashlib
import json
import re
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from dvc.repo import Repo
from huggingface_hub import RepoFile
from huggingface_hub.errors import LocalTokenNotFoundError

from deeplab.errors import DataError
from pipeline.errors import MismatchError, ParamsError
from pipeline.predict import export
from pipeline.settings.links import Published, read_published, write_published
from pipeline.settings.places import Places
from pipeline.verify.publish import publish, publish_to_hub, pull
from tests.records import CELL, OTHER, ROOT, Folder

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # of a library of DVC

SPOT = "weights/spots/seed0-step44.safetensors"
FILES = ("weights/seed0.safetensors", "history.csv", "run.json", SPOT)
TABLE, CSV = "reports/tables/shapes.md", "reports/records/shapes/published.csv"
STAGE = """stages:
  train:
    foreach: ${grid}
    do:
      cmd: "true"
      outs: ["runs/${key}/weights", "runs/${key}/run.json", "runs/${key}/history.csv"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository with one trained cell and a folder as its remote, which is the working folder."""
    folder = Folder(tmp_path / "here")
    monkeypatch.chdir(folder.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///dev/null/no")
    folder.measure(CELL, 0.8)
    folder.train(CELL)
    spot = {"start": 44, "stop": 64, "sha256": hashlib.sha256(b"state").hexdigest(), "after": "0", "losses": [1.5]}
    run = json.loads(Path(f"runs/{CELL}/run.json").read_text())
    run["seeds"]["0"]["spots"] = [spot]
    for name, content in zip(FILES, (f"{CELL}0", "step\n1\n", json.dumps(run), "state"), strict=True):
        path = folder.path / "runs" / CELL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    Path("dvc.yaml").write_text(STAGE)
    Path(".gitignore").write_text("/data\n/runs\n")
    (tmp_path / "remote").mkdir()
    subprocess.run(["git", "init", "-q"], check=True)
    with Repo.init(".") as repo:
        with repo.config.edit("repo") as config:
            config["remote"] = {"store": {"url": str(tmp_path / "remote")}}
        repo.commit(f"train@{CELL}", force=True)
    folder.raw["publish"] = {"remote": "store"}
    folder.write_params()
    return folder


@pytest.fixture
def server(tmp_path):
    """Serves the remote to anybody."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "remote"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def column(folder):
    """The column Download of the cell in a new table."""
    folder.tables()
    (line,) = [line for line in Path(TABLE).read_text().splitlines() if "80.00%" in line]
    return line.split(" | ")[-1].removesuffix(" |")


def stored(tmp_path, name):
    """The place of a pushed file in the remote."""
    md5 = hashlib.md5(Path(f"runs/{CELL}/{name}").read_bytes()).hexdigest()
    return tmp_path / "remote" / "files" / "md5" / md5[:2] / md5[2:]


def test_an_unpublished_cell_has_no_link(folder):
    assert column(folder) == f"local · [card](reports/cards/shapes/{CELL}.md)"


def test_a_stranger_gets_the_weights(folder, tmp_path, server, monkeypatch):
    folder.raw["publish"]["address"] = server
    folder.write_params()
    said = list(publish([], Places()))
    assert said[0] == f"{CELL}: 3 files in the remote 'store', read back from {server}"
    assert said[1:] == ["To link them in the README: dvc repro -s tables@shapes readme@shapes"]
    links = re.findall(r"\[(\w+)\]\((\S+)\)", column(folder))
    assert [name for name, _ in links] == ["model", "log", "card"]
    assert all(url.startswith(f"{server}/files/md5/") for _, url in links[:2])

    stranger = tmp_path / "stranger"
    kept = [
        path
        for path in Path().rglob("*")
        if path.is_file() and path.parts[0] in ("reports", ".dvc", "params.yaml", "dvc.yaml", "dvc.lock")
    ]
    for path in kept:
        if "cache" not in path.parts and "tmp" not in path.parts:
            (stranger / path).parent.mkdir(parents=True, exist_ok=True)
            (stranger / path).write_bytes(path.read_bytes())
    own, run = Path(f"runs/{CELL}/{FILES[0]}").read_bytes(), Path(f"runs/{CELL}/run.json").read_bytes()
    monkeypatch.chdir(stranger)
    subprocess.run(["git", "init", "-q"], check=True)
    assert list(pull([CELL], Places())) == [f"{CELL}: 3 files, as published"]
    assert Path(f"runs/{CELL}/{FILES[0]}").read_bytes() == own
    assert Path(f"runs/{CELL}/run.json").read_bytes() == run
    assert Path(f"runs/{CELL}/{SPOT}").read_text() == "state"


def test_another_state_than_that_of_run_json_is_not_published(folder):
    Path(f"runs/{CELL}/{SPOT}").write_text("another")
    with pytest.raises(MismatchError, match=rf"{SPOT}: not the state of runs/{CELL}/run.json. Run: dvc checkout"):
        list(publish([CELL], Places()))
    assert not Path(CSV).exists()


def test_without_an_address_the_column_names_the_command(folder):
    list(publish([CELL], Places()))
    assert column(folder).startswith(f"`grid pull {CELL}` · [card]")


def test_other_weights_than_the_published_ones_are_local(folder):
    list(publish([CELL], Places()))
    entries = [Published(CELL, "seed0.safetensors", "0" * 64, "https://example.org/old")]
    write_published(Path(CSV), entries)
    assert column(folder).startswith("local · ")


def test_publishing_again_replaces_the_lines_of_the_cell(folder):
    write_published(Path(CSV), [Published("other", "seed0.safetensors", "1" * 64, "")])
    list(publish([CELL], Places()))
    list(publish([CELL], Places()))
    assert [(entry.cell, entry.file) for entry in read_published(Path(CSV))] == [
        ("other", "seed0.safetensors"),
        (CELL, "history.csv"),
        (CELL, "seed0.safetensors"),
        (CELL, SPOT.removeprefix("weights/")),
    ]


def no_remote(folder, tmp_path):
    del folder.raw["publish"]
    folder.write_params()


def unknown_remote(folder, tmp_path):
    folder.raw["publish"]["remote"] = "nowhere"
    folder.write_params()


def remote_that_is_full(folder, tmp_path):
    (tmp_path / "remote").rmdir()
    (tmp_path / "remote").symlink_to("/dev/full")


def remote_without_its_plugin(folder, tmp_path):
    with Repo() as repo, repo.config.edit("repo") as config:
        config["remote"]["store"]["url"] = "gs://bucket/x"


def remote_that_does_not_answer(folder, tmp_path):
    with Repo() as repo, repo.config.edit("repo") as config:
        config["remote"]["store"]["url"] = "http://127.0.0.1:9/x"


def address_that_does_not_answer(folder, tmp_path):
    folder.raw["publish"]["address"] = "http://127.0.0.1:9"
    folder.write_params()


def weights_of_another_training(folder, tmp_path):
    Path(f"runs/{CELL}/{FILES[0]}").write_text("other")


def wrong_byte_in_the_remote(folder, tmp_path):
    list(publish([CELL], Places()))
    Path(CSV).unlink()
    place = stored(tmp_path, FILES[0])
    place.chmod(0o644)
    place.write_text("not it")


BAD = {
    no_remote: (ParamsError, "publish.remote: missing. Add a place: dvc remote add NAME URL"),
    unknown_remote: (OSError, "remote 'nowhere': .*doesn't exist"),
    remote_that_is_full: (OSError, "remote 'store': "),
    remote_without_its_plugin: (OSError, "remote 'store': gs is supported, but requires 'dvc-gs'"),
    remote_that_does_not_answer: (OSError, "remote 'store': .*failed to upload"),
    address_that_does_not_answer: (OSError, "http://127.0.0.1:9/files/md5/"),
    weights_of_another_training: (MismatchError, "not the weights of the record. Run: dvc checkout"),
    wrong_byte_in_the_remote: (MismatchError, "arrived damaged in the remote 'store'"),
}


@pytest.mark.parametrize("harm", BAD, ids=lambda harm: harm.__name__)
def test_a_failure_is_one_line_and_leaves_no_link(harm, folder, tmp_path):
    harm(folder, tmp_path)
    kind, said = BAD[harm]
    with pytest.raises(kind, match=said) as caught:
        list(publish([CELL], Places()))
    assert "\n" not in str(caught.value)
    assert not Path(CSV).exists()


def test_a_byte_that_the_address_gives_wrong_is_found(folder, tmp_path, server):
    folder.raw["publish"]["address"] = f"{server}/old"
    folder.write_params()
    (tmp_path / "remote" / "old").mkdir()
    list(publish_without_address(folder))
    shifted = tmp_path / "remote" / "old" / stored(tmp_path, FILES[0]).relative_to(tmp_path / "remote")
    shifted.parent.mkdir(parents=True)
    shifted.write_text("old bytes")
    folder.raw["publish"]["address"] = f"{server}/old"
    folder.write_params()
    Path(CSV).unlink()
    with pytest.raises(MismatchError, match=r"another SHA-256 than seed0.safetensors of .* It is not linked"):
        list(publish([CELL], Places()))
    assert not Path(CSV).exists()


def publish_without_address(folder):
    del folder.raw["publish"]["address"]
    folder.write_params()
    return publish([CELL], Places())


def test_a_cell_without_a_result_is_named(folder):
    with pytest.raises(ParamsError, match=f"{OTHER}: no result to publish: not measured yet"):
        list(publish([OTHER], Places()))
    with pytest.raises(ParamsError, match=f"{OTHER}: not published"):
        list(pull([OTHER], Places()))


def test_an_unknown_cell_is_named_before_a_missing_remote(folder):
    no_remote(folder, None)
    with pytest.raises(ParamsError, match="grid: unknown name 'nope'"):
        list(pull(["nope"], Places()))


def test_a_damaged_list_names_its_file(folder):
    Path(CSV).parent.mkdir(parents=True, exist_ok=True)
    Path(CSV).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=f"{CSV}: damaged.* Restore it: git checkout"):
        read_published(Path(CSV))


def test_no_readme_links_into_a_folder_that_git_ignores():
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/*/*.md"),
        *ROOT.glob("reports/**/*.md"),
    ]:
        links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
        ignored = [link for link in links if re.match(r"(\.\./)*(runs|data|mlartifacts)/", link)]
        assert not ignored, path


class FakeHub:
    """What the Hub answers; `sha256` is that of the file which arrived."""

    oid, commit_url = "abc", "https://hub/commit/abc"

    def __init__(self, sha256=None, error=None):
        self.sha256, self.error, self.created = sha256, error, {}

    def create_repo(self, repository, **how):
        if self.error:
            raise self.error
        self.created[repository] = how

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert repo_id in self.created
        assert commit_message == f"Publish {CELL}"
        own = hashlib.sha256((Path(folder_path) / "model.safetensors").read_bytes()).hexdigest()
        self.sha256 = self.sha256 or own
        return self

    def get_paths_info(self, repository, paths, revision):
        assert (paths, revision) == (["model.safetensors"], "abc")
        lfs = {"size": 1, "oid": self.sha256, "pointerSize": 1}
        return [RepoFile(path="model.safetensors", size=1, oid="0", lfs=lfs)]


@pytest.fixture
def on_hub(folder, monkeypatch):
    """Publish the cell to a hub whose answers the test chooses."""

    def write(name, kind, out, *, places):
        assert (name, kind, places) == (CELL, "huggingface", Places())
        (out / "model.safetensors").write_text("weights")

    monkeypatch.setattr(export, "run", write)

    def to(hub):
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        return list(publish_to_hub([CELL], "me/cell", Places()))

    return to


def test_the_hub_gets_a_private_repository(on_hub):
    hub = FakeHub()
    (line,) = on_hub(hub)
    assert line.startswith(f"{CELL}: at https://hub/commit/abc; private until you change it there")
    assert hub.created == {"me/cell": {"private": True, "exist_ok": True}}


def test_other_bytes_on_the_hub_and_a_missing_token_are_one_line(on_hub):
    with pytest.raises(MismatchError, match="me/cell: model.safetensors arrived with another SHA-256"):
        on_hub(FakeHub(sha256="0" * 64))
    with pytest.raises(OSError, match="--hub me/cell: no token.* Sign in: hf auth login"):
        on_hub(FakeHub(error=LocalTokenNotFoundError("no token\nhere")))


def test_a_repository_holds_one_network(folder):
    with pytest.raises(ParamsError, match="--hub: got 2 cells, expected one"):
        list(publish_to_hub([CELL, OTHER], "me/cell", Places()))

import fcntl
import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab.errors import DataError
from pipeline import files as module
from pipeline.data.fetch import Patience
from pipeline.errors import BusyError, describe
from pipeline.settings.params import load_params
from pipeline.settings.schema import Archive, DatasetConfig
from pipeline.stages import download
from tests.archives import write_tar, write_zip
from tests.faults import tried
from tests.raw import dataset_config
from tests.server import Server, file

ROOT = Path(__file__).parents[1]
QUICK = Patience(connect=5, silence=5, tries=2, pause=0)
PLACED = {"dataset": "tiny", "raw": "placed by the user", "archives": []}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server().running() as server:
        yield server


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project folder with the two archives of a data set on a shelf beside it."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "project").mkdir()
    write_tar(tmp_path / "shelf/images.tar", ("images/1.jpg", b"one"), ("images/2.jpg", b"two"), ("README", b"x"))
    write_zip(tmp_path / "shelf/masks.zip", ("masks/1.png", b"1"), ("masks/2.png", b"2"), ("README", b"another"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def tiny(place, *addresses, kind="voc", **changes):
    """The settings of that data set; `addresses` are the folders from which its archives can be fetched."""
    archives = []
    for name, folder in (("images.tar", "images"), ("masks.zip", "masks")):
        content = (place / "shelf" / name).read_bytes()
        what = {"size": len(content), "folders": (folder,), "max_unpacked": 10_000, **changes}
        urls = tuple(f"{address}/{name}" for address in addresses)
        archives.append(Archive(name=name, urls=urls, md5=hashlib.md5(content).hexdigest(), **what))
    return DatasetConfig(title="Tiny", format=kind, archives=tuple(archives), images={}, allow_subset=False)


def serve(place, server):
    for path in (place / "shelf").iterdir():
        server.script[f"/{path.name}"] = [file(path.read_bytes())]


def put(place):
    """Place the archives as a user does."""
    Path("data/archives").mkdir(parents=True)
    for path in (place / "shelf").iterdir():
        Path("data/archives", path.name).write_bytes(path.read_bytes())


def run(config):
    """What the stage says of the data set."""
    out = Path("data/downloads/tiny.json")
    out.unlink(missing_ok=True)
    download.get("tiny", config, Path("data/archives"), Path("data/raw/tiny"), out, QUICK)
    return json.loads(out.read_text())


def files(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def names(folder):
    return [path.name for path in Path(folder).iterdir()]


UNPACKED = {"images/1.jpg", "images/2.jpg", "masks/1.png", "masks/2.png", ".download.json"}


def test_archives_are_fetched_and_unpacked_into_one_raw_folder(place, server, capsys):
    serve(place, server)
    record = run(tiny(place, server.address))
    assert files("data/raw/tiny") == UNPACKED
    assert Path("data/raw/tiny/images/2.jpg").read_bytes() == b"two"
    assert names("data/raw") == ["tiny"]
    contents = {path.name: path.read_bytes() for path in (place / "shelf").iterdir()}
    assert record == {
        "dataset": "tiny",
        "raw": "unpacked from these archives",
        "archives": [
            {
                "name": name,
                "size": len(contents[name]),
                "sha256": hashlib.sha256(contents[name]).hexdigest(),
                "from": f"{server.address}/{name}",
            }
            for name in ("images.tar", "masks.zip")
        ],
    }
    assert capsys.readouterr().out == "tiny: data/raw/tiny: unpacked from these archives\n"


def test_a_second_run_fetches_nothing_and_says_the_same(place, server):
    serve(place, server)
    first = run(tiny(place, server.address))
    asked = len(server.requests)
    assert run(tiny(place, "http://127.0.0.1:1/moved")) == first
    assert len(server.requests) == asked == 2


def test_archives_that_are_there_and_right_are_not_fetched(place, server, capsys):
    put(place)
    record = run(tiny(place, server.address))
    assert server.requests == []
    assert [archive["from"] for archive in record["archives"]] == ["found in data/archives"] * 2
    assert files("data/raw/tiny") == UNPACKED
    assert "images.tar: found, checking it\n" in capsys.readouterr().out


@tried.ARCHIVES
def test_an_archive_that_is_there_and_wrong_is_moved_aside_and_fetched(place, server, capsys):
    put(place)
    Path("data/archives/images.tar").write_bytes(b"wrong")
    serve(place, server)
    record = run(tiny(place, server.address))
    assert [asked[0] for asked in server.requests] == ["/images.tar"]
    assert record["archives"][0]["from"] == f"{server.address}/images.tar"
    assert Path("data/archives/images.tar.bad").read_bytes() == b"wrong"
    said = capsys.readouterr().out
    assert "images.tar: 5 bytes, expected 10,240. Moved to images.tar.bad, fetching it again\n" in said


@tried.ARCHIVES
def test_an_archive_of_the_user_that_is_wrong_is_left_alone_and_named(place):
    put(place)
    Path("data/archives/masks.zip").write_bytes(b"half")
    config = tiny(place, size=None)
    expected = config.archives[1].md5
    with pytest.raises(DataError) as caught:
        run(config)
    found = hashlib.md5(b"half").hexdigest()
    assert str(caught.value) == (
        f"data/archives/masks.zip: md5 {found}, expected {expected}. It is incomplete or another file: download it again."
    )
    assert Path("data/archives/masks.zip").read_bytes() == b"half"
    assert names("data/raw") == []


@pytest.mark.parametrize("linked", [False, True])
def test_a_raw_folder_that_the_user_placed_is_left_alone(place, server, linked):
    own = place / "own" if linked else Path("data/raw/tiny")
    own.mkdir(parents=True)
    (own / "mine.jpg").write_bytes(b"mine")
    if linked:
        Path("data/raw").mkdir(parents=True)
        Path("data/raw/tiny").symlink_to(own)
    for _ in range(2):
        assert run(tiny(place, server.address)) == PLACED
    assert server.requests == []
    assert names(own) == ["mine.jpg"]
    assert not Path("data/archives").exists()


@tried.LISTS
def test_a_link_to_nowhere_is_named_and_nothing_is_fetched(place, server):
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/tiny").symlink_to("/not/mounted")
    with pytest.raises(DataError, match="^data/raw/tiny: links to /not/mounted, which is missing. Mount it, or rem"):
        run(tiny(place, server.address))
    assert server.requests == []


@tried.LISTS
def test_a_file_in_place_of_the_raw_folder_is_named(place, server):
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/tiny").write_bytes(b"")
    with pytest.raises(DataError, match="^data/raw/tiny: a file, expected the folder of the unpacked data. Move it"):
        run(tiny(place, server.address))


@pytest.mark.parametrize("linked", [False, True])
def test_an_empty_raw_folder_is_filled_and_a_link_stays_a_link(place, linked):
    put(place)
    Path("data/raw").mkdir()
    if linked:
        (place / "disk").mkdir()
        Path("data/raw/tiny").symlink_to(place / "disk")
    else:
        Path("data/raw/tiny").mkdir()
    run(tiny(place))
    assert Path("data/raw/tiny").is_symlink() == linked
    assert files("data/raw/tiny") == UNPACKED


@tried.ARCHIVES
def test_what_an_interrupted_unpack_left_is_not_taken_for_complete(place):
    put(place)
    left = Path("data/raw/.tiny.part")
    (left / "images").mkdir(parents=True)
    (left / "images/1.jpg").write_bytes(b"o")
    (left / "images/99.jpg").write_bytes(b"of another day")
    run(tiny(place))
    assert files("data/raw/tiny") == UNPACKED
    assert Path("data/raw/tiny/images/1.jpg").read_bytes() == b"one"
    assert not left.exists()


@tried.ARCHIVES
def test_an_archive_that_is_refused_leaves_no_raw_folder(place):
    write_tar(place / "shelf/images.tar", ("images/1.jpg", b"one"), ("../../canary", b"dead"))
    put(place)
    with pytest.raises(DataError, match=r"^data/archives/images.tar: refused: '../../canary' leaves the folder$"):
        run(tiny(place))
    assert names("data/raw") == []
    assert not Path("data/downloads/tiny.json").exists()


@tried.SMALL_DISK
def test_a_disk_that_fills_up_while_unpacking_leaves_nothing_and_a_re_run_goes_on(place):
    write_tar(place / "shelf/images.tar", ("images/1.jpg", b"one"), ("images/2.jpg", bytes(8000)))
    put(place)
    config = tiny(place)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = "images/2.jpg: no space left on the disk. Free some and run the same command again."
    assert describe(caught.value).endswith(f"/data/raw/.tiny.part/{said}")
    assert names("data/raw") == []
    run(config)
    assert len(files("data/raw/tiny")) == 5


def test_a_data_set_without_archives_needs_nothing(place):
    config = dataset_config("shapes", {"train": 1})
    assert run(config) == {"dataset": "tiny", "raw": "nothing to download", "archives": []}
    Path("data/raw/tiny").mkdir(parents=True)
    Path("data/raw/tiny/mine.jpg").touch()
    assert run(config) == PLACED


def test_archives_without_an_address_are_asked_for_before_any_other_is_fetched(place, server):
    archives = (tiny(place, server.address).archives[0], tiny(place).archives[1])
    with pytest.raises(DataError) as caught:
        run(DatasetConfig(title="Tiny", format="voc", archives=archives, images={}, allow_subset=False))
    assert str(caught.value) == (
        "data/archives: missing masks.zip of tiny: no public address has it. Put it there. "
        "Then run the same command again. Or put or link the unpacked folders at data/raw/tiny."
    )
    assert server.requests == []


def test_cityscapes_explains_both_ways_in_one_line(place):
    command = [sys.executable, "-m", "pipeline.stages.download", "cityscapes"]
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 65
    assert done.stdout == ""
    assert done.stderr == (
        "error: data/archives: missing gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip of cityscapes: no public "
        "address has them. With an account of your own, download them in a browser from "
        "https://www.cityscapes-dataset.com/downloads/ and put them there, or run: pip install cityscapesscripts && "
        "csDownload -d data/archives gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip. "
        "Then run the same command again. Or put or link the unpacked folders at data/raw/cityscapes.\n"
    )


@pytest.mark.parametrize(("name", "who"), [(".tiny.lock", "tiny"), (".images.tar.lock", "images.tar")])
def test_two_processes_do_not_fetch_the_same(place, server, monkeypatch, name, who):
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    Path("data/archives").mkdir(parents=True)
    with Path("data/archives", name).open("w") as other:
        other.write("process 123 on somewhere")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=rf"^{who}: already being downloaded \(process 123 on somewhere\)"):
            run(tiny(place, server.address))
    assert server.requests == []


@tried.RESULTS
def test_a_receipt_that_cannot_be_read_is_named(place):
    Path("data/raw/tiny").mkdir(parents=True)
    Path("data/raw/tiny/.download.json").write_text("{")
    with pytest.raises(DataError, match="^data/raw/tiny/.download.json: damaged. Remove this file to keep the"):
        run(tiny(place))


# As published; of the others no size is.
PUBLISHED = {
    "VOCtrainval_11-May-2012.tar": {
        "md5": "6cd6e144f989b92b3379bac3b3de84fd",
        "sha256": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    },
    "benchmark.tgz": {"md5": "82b4d87ceb2ed10f6038a1cba92111cb"},
    "ADEChallengeData2016.zip": {
        "md5": "7328b3957e407ddae1d3cbf487f149ef",
        "sha1": "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    },
    "gtFine_trainvaltest.zip": {"sha1": "99f532cb1af174f5fcc4c5bc8feea8c66246ddbc"},
    "leftImg8bit_trainvaltest.zip": {"sha1": "2c0b77ce9933cc635adda307fbba5566f5d9d404"},
}


def test_the_official_archives_have_their_published_checksums():
    archives = {a.name: a for config in load_params(ROOT / "params.yaml").datasets.values() for a in config.archives}
    assert {name: archive.checksums for name, archive in archives.items()} == PUBLISHED
    assert {name: archive.size for name, archive in archives.items() if archive.size} == {
        "VOCtrainval_11-May-2012.tar": 1_999_639_040
    }

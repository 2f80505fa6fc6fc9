"""`python -m benchmarks.race` with stand-ins for the peers: nothing is installed, trained or downloaded."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.race import __main__ as race
from benchmarks.race.job import Clock, Job
from pipeline.errors import BusyError
from pipeline.files import claimed

PAGE = """# Race

<!-- race-minutes -->
<!-- /race-minutes -->

<!-- race -->
| Start |
| :-: |
| imagenet | 1 | good 0.9 | an earlier race of another start | 12.0% |
| scratch | 1 | good 0.9 | an earlier race of other minutes | 10.0% |
| scratch | 2 | good 0.9 | an earlier race of the same minutes | 11.0% |
| scratch | 2 | other 0.9 | an earlier race of another peer | - |
<!-- /race -->

The end.
"""
PEER = """
import json, pathlib, sys
from PIL import Image
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
data, out = pathlib.Path(words["--data"]), pathlib.Path(words["--out"])
(out / "masks").mkdir()
for path in (data / "masks/val").iterdir():
    %s
(out / "result.json").write_text(json.dumps({"network": "tiny", "given": "a|b", "images": 30, "seconds": 120.0, "other_seconds": 3.0, "version": "1.0"}))
"""
PERFECT = (
    'Image.open(path).point(lambda value: value % 255).save(out / "masks" / path.name)'  # 255 becomes 0: not counted
)
ALL_SKY = 'Image.new("L", (6, 4), 0).save(out / "masks" / path.name)'
SMALL = 'Image.new("L", (3, 2), 0).save(out / "masks" / path.name)'


@pytest.fixture
def camvid(tmp_path):
    """Two training images and one for validation: 8 pixels of Sky, 8 of Building, 8 without a label."""
    mask = np.repeat([0, 1, 11], 8).astype("uint8").reshape(4, 6)
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        for folder in (split, f"{split}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (6, 4)).save(tmp_path / "camvid" / split / f"{name}.jpg")
            Image.fromarray(mask).save(tmp_path / "camvid" / f"{split}annot" / f"{name}.png")
    return tmp_path / "camvid"


@pytest.fixture
def run(camvid, tmp_path, monkeypatch, capsys):
    """Run the command with the code of each peer; one that is an exception does not install."""
    page = tmp_path / "race.md"
    page.write_text(PAGE)
    monkeypatch.setattr(race, "PAGE", page)
    monkeypatch.setattr(race, "COUNTS", {"train": 2, "val": 1})
    monkeypatch.setattr(race, "MEMORY", 0)  # no peer is installed here
    monkeypatch.setattr(race, "DISK", 0)
    monkeypatch.setattr(race.os, "sched_setaffinity", lambda *_: None)

    def install(name, cache):
        if isinstance(peers[name], Exception):
            raise peers[name]
        (tmp_path / f"{name}.py").write_text(PEER % peers[name])
        return name

    def call(words, log, seconds, real=race.call, **options):
        real([sys.executable, tmp_path / f"{words[0]}.py", *words[3:]], log, seconds, **options)

    peers = {}
    monkeypatch.setattr(race, "install", install)
    monkeypatch.setattr(race, "call", call)

    def run(*words, **codes):
        peers.update(codes)
        monkeypatch.setattr(race, "PEERS", dict.fromkeys(peers, ()))
        monkeypatch.setattr(race, "IMAGENET", ("good",))
        given = ("--camvid", camvid, "--minutes", "2", "--cache", tmp_path / "cache", *words)
        monkeypatch.setattr(sys, "argv", ["race", *map(str, given)])
        race.main()
        printed = capsys.readouterr().out
        return json.loads(printed.splitlines()[-1]), printed, page.read_text()

    return run


def test_each_peer_is_scored_and_the_last_line_is_json(run):
    rows, printed, _ = run(good=PERFECT, sky=ALL_SKY)
    assert (rows["good"]["mIoU"], rows["sky"]["mIoU"]) == (1.0, 0.25)  # Sky 8/16, Building 0, others absent
    assert rows["good"]["images_per_second"] == 0.25
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "2 peers, about 10 minutes in all" in printed


def test_a_peer_that_does_not_install_or_run_is_named_with_the_reason_and_the_others_go_on(run):
    rows, printed, page = run(
        missing=OSError("no matching version"), broken="raise SystemExit('no room')", good=PERFECT
    )
    assert rows["missing"]["status"] == "left out: no matching version"
    assert rows["broken"]["status"].startswith("left out: no room (exit code 1")
    assert rows["good"]["mIoU"] == 1.0
    assert "missing: left out: no matching version" in printed
    assert "| missing | left out: no matching version | - | - |" in page


def test_a_mask_of_another_size_or_a_missing_one_gives_no_score(run):
    rows, _, _ = run(small=SMALL, none="pass")
    assert "shape (2, 3)" in rows["small"]["status"]
    assert "c.png" in rows["none"]["status"]
    assert not any("mIoU" in row for row in rows.values())


def test_the_table_is_filled_in_order_and_rows_of_other_races_stay(run):
    _, _, page = run(sky=ALL_SKY, good=PERFECT)
    assert "an earlier race of the same minutes" not in page
    places = [
        "<!-- race -->\n| Start |\n| :-: |\n| scratch | 1 | good 0.9 | an earlier race of other minutes",
        "| good 1.0 | tiny | 100.0% | 30 | 0.25 | 120 | 3 | a/b | 1 x ",
        "| sky 1.0",
        "an earlier race of another peer",
        "an earlier race of another start",
    ]
    assert [page.index(text) for text in places] == sorted(page.index(text) for text in places)
    assert page.startswith("""# Race

<!-- race-minutes -->
| Start | Peer | 1 min | 2 min |
| :-: | :-: | :-: | :-: |
| scratch | good | 10.0% | 100.0% |
| scratch | sky | - | 25.0% |
| scratch | other | - | - |
| imagenet | good | 12.0% | - |
<!-- /race-minutes -->
""")
    assert page.endswith("<!-- /race -->\n\nThe end.\n")
    assert run(sky=ALL_SKY, good=PERFECT)[2] == page


def test_with_imagenet_weights_only_peers_run_that_can_take_them(run, tmp_path):
    (tmp_path / "weights").touch()
    rows, printed, _ = run("--start", "imagenet", "--weights", tmp_path / "weights", good=PERFECT, sky=ALL_SKY)
    assert list(rows) == ["good"]
    assert "sky: left out: it cannot take these ImageNet weights" in printed


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--minutes", "0.1"), "--minutes: got 0.1, expected 0.5 or more"),
        (("--minutes", "nan"), "--minutes: got nan"),
        (("--cores", "0"), "--cores: got 0, expected 1 to"),
        (("--cores", "99999"), "--cores: got 99999"),
        (("--start", "imagenet"), "--weights: None: no such file"),
        (
            ("--camvid", "nowhere"),
            "--camvid: nowhere/train: 0 images, 0 of them without a mask in trainannot; expected 2",
        ),
        (("--minutes", "1e9"), "--minutes: got 1e+09"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(run, words, wrong):
    with pytest.raises(race.ParamsError, match=re.escape(wrong)):
        run(*words, good=PERFECT)


def test_a_second_race_in_the_same_folder_leaves_the_first_one_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.files.PATIENCE", 0)
    (tmp_path / "cache/camvid").mkdir(parents=True)
    with (
        claimed(tmp_path / "cache/.lock", "the first race"),
        pytest.raises(BusyError, match=r"cache: already being used \(process \d+ on "),
    ):
        run(good=PERFECT)
    assert (tmp_path / "cache/camvid").exists()
    assert run(good=PERFECT)[0]["good"]["status"] == "ok"


def test_an_image_without_a_mask_is_refused(run, camvid):
    (camvid / "valannot/c.png").unlink()
    with pytest.raises(race.ParamsError, match="1 images, 1 of them without a mask in valannot"):
        run(good=PERFECT)


@pytest.mark.parametrize(("limit", "what"), [("MEMORY", "of memory, expected"), ("DISK", "of space in")])
def test_too_little_memory_or_disk_is_said_before_anything_runs(run, monkeypatch, limit, what):
    monkeypatch.setattr(race, limit, 1e18)
    with pytest.raises(race.ParamsError, match=what):
        run(good=PERFECT)


def test_an_environment_is_made_once_for_its_pins(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        race, "call", lambda words, *_: calls.append(words) or (tmp_path / "env/x").mkdir(parents=True, exist_ok=True)
    )
    monkeypatch.setattr(race, "PEERS", {"x": ("a==1",)})
    assert race.install("x", tmp_path) == race.install("x", tmp_path) == tmp_path / "env/x/bin/python"
    assert [words[1] for words in calls] == ["venv", "pip"]
    monkeypatch.setattr(race, "PEERS", {"x": ("a==2",)})
    race.install("x", tmp_path)
    assert calls[-1][-1] == "a==2"


def test_every_peer_has_a_runner_and_none_imports_what_has_another_licence():
    folder = race.ROOT / "benchmarks/race"
    assert all((folder / f"{name}.py").is_file() for name in race.PEERS)
    texts = "".join(path.read_text() for path in race.ROOT.rglob("benchmarks/**/*.py"))
    assert not re.search(r"^\s*(?:import|from) (?:ultralytics|lightly)", texts, re.M)


def test_the_page_has_the_table_that_the_command_fills():
    assert race.PAGE.read_text().count("<!-- race -->\n| Start | Minutes | Peer |") == 1


def test_the_clock_gives_the_share_of_the_minutes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("benchmarks.race.job.time.monotonic", lambda: now[0])
    clock = Clock(1.0)
    now[0] = 130.0
    assert clock.share() == 0.5
    now[0] = 161.0
    assert (clock.share(), clock.seconds) == (1.0, 61.0)


def test_a_job_writes_predictions_by_the_name_of_the_image(tmp_path):
    job = Job(data=tmp_path / "data", out=tmp_path, minutes=1.0, cores=1, weights=None)
    image = tmp_path / "data/images/val/a.jpg"
    job.write(image, torch.full((2, 3), 7))
    assert Image.open(tmp_path / "masks/a.png").getextrema() == (7, 7)

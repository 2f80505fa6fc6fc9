"""What is shown escapes every name, and is served to this machine alone."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.data import card
from pipeline.markdown import code, plain
from pipeline.tracking import ui
from pipeline.tracking.client import open_experiment
from pipeline.tracking.models import NOTE
from tests.records import CELL, ROOT, Folder, blank_database

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

NASTY = [
    '"><script>alert(1)</script>',
    "[a](javascript:alert(1))",
    "x\n---\nlicense: mit",
    "| a | b |",
    "`code` <img src=x>",
    "![x](http://evil.example/x.png)",
    "\\[b](http://evil.example)",
]
HARMFUL = re.compile(r"(?<!\\)(\\\\)*(<[a-z/!?]|\[[^\]]*\]\((?!shapes_)|&[a-z#]\w*;)", re.IGNORECASE)
SHOWN = pytest.mark.fault(
    "security",
    "a title, class or image whose name is HTML, Markdown or YAML",
    "`<script>`, links, pictures, tables, line breaks and random text as names, in cards, tables and notes",
    "shown as text: no tag, no link, no further key",
)


@pytest.fixture
def blank(tmp_path_factory):
    return blank_database(tmp_path_factory.getbasetemp())


@SHOWN
def test_cards_tables_and_notes_show_titles_and_splits_as_text(tmp_path, monkeypatch, blank):
    title = " ".join(NASTY)
    folder = Folder(tmp_path / "folder", blank)
    folder.raw["datasets"]["shapes"]["title"] = title
    folder.write_params()
    monkeypatch.chdir(folder.path)
    folder.measure(CELL, 0.5)
    folder.train(CELL)
    folder.tables()
    card = Path(f"reports/cards/shapes/{CELL}.md").read_text(encoding="utf-8")
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    said = YAML(typ="safe").load(head)
    assert said["license"] == "other"
    assert said["model-index"][0]["results"][0]["dataset"]["name"] == title
    with open_experiment("shapes", timeout=5) as experiment:
        notes = experiment.client.get_experiment(experiment.number).tags[NOTE]
    for text in (body, Path("reports/cards/shapes/README.md").read_text(encoding="utf-8"), notes):
        assert "alert(1)" in text
        assert not HARMFUL.search(text)


@SHOWN
def test_a_data_card_shows_the_names_of_classes_and_images_as_text():
    spread = {"min": 1, "median": 2, "max": 3}
    split = {"images": 3, "published": 3, "width": spread, "height": spread, "ignored_share": 0.05}
    kinds = [{"name": name, "pixel_share": {"val": 0.1}, "images": {"val": 0}} for name in NASTY]
    twice = [[{"split": "val", "id": name}] * 2 for name in NASTY]
    text = card.markdown(
        {"dataset": "a", "fingerprint": "b", "splits": {"val": split}, "classes": kinds, "duplicates": twice}
        | {"trivial_mIoU": None}
    )
    without_code = re.sub(r"(?<!\\)`[^`\n]*`", "", text)
    assert not HARMFUL.search(without_code)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "10.00%" in line]
    assert len(rows) == len(NASTY)
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {4}


@SHOWN
@settings(max_examples=50, deadline=None)
@given(st.text())
def test_no_text_formats_anything_in_markdown(text):
    shown = plain(text)
    assert "\n" not in shown
    assert not HARMFUL.search(shown)
    assert not re.search(r"(?<!\\)(\\\\)*[`|]", shown)
    assert code(text).count("`") == 2


@pytest.mark.fault(
    "security",
    "a web page or another machine that calls the tracking server",
    "Host headers of other names and of private networks, against the words that `make ui` starts it with",
    "it listens on the loopback address alone, and answers to its own names only",
)
@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("localhost", True),
        ("evil.example", False),
        ("evil.example:5000", False),
        ("10.0.0.1:5000", False),
        ("192.168.1.2", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:5000", False),
        ("", False),
    ],
)
def test_the_server_answers_to_its_own_names_only(tmp_path, monkeypatch, blank, host, answered):
    from mlflow.server.security_utils import is_allowed_host_header

    started = []
    monkeypatch.chdir(Folder(tmp_path / "folder", blank).path)
    monkeypatch.setattr("os.execv", lambda program, words: started.append((words, dict(ui.os.environ))))
    monkeypatch.setattr("pipeline.tracking.ui.pages", dict)
    monkeypatch.setattr("subprocess.Popen", lambda words: None)
    monkeypatch.setattr("pipeline.tracking.ui.require_free", lambda port: None)
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    ui.run(5099)
    ((words, environment),) = started
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert is_allowed_host_header(words[words.index("--allowed-hosts") + 1].split(","), host) == answered
    assert "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE" not in environment


def test_no_file_of_the_code_listens_on_all_addresses():
    for path in (ROOT / "pipeline").rglob("*.py"):
        assert not re.search(r"0\.0\.0\.0|\bINADDR_ANY\b|http\.server", path.read_text(encoding="utf-8")), path

import json
import re
from pathlib import Path

import pytest

from benchmarks import audit

ROOT = Path(__file__).parents[1]
PINS = "torch==2.15.0 \\\n    --hash=sha256:00\nnumpy==2.4.6 ; python_version < '3.12'\nnumpy==2.5.5 ; python_version >= '3.12'\n"
KNOWN = '[[finding]]\nid = "A-1"\npackage = "torch"\nlast = "2.14"\nmeans = "Nothing."\n'


@pytest.fixture
def place(tmp_path):
    (tmp_path / "requirements.txt").write_text(PINS)
    (tmp_path / "known.toml").write_text(KNOWN)
    return tmp_path


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([{"name": "torch", "version": "2.15.0", "vulns": []}], 0, "**Audited: 1 of 1.** The service answered"),
        ([{"name": "torch", "skip_reason": "not found"}], 1, "**Audited: 0 of 1.** For 1 the service gave no answer"),
        ([{"name": "torch", "version": "2.15.0", "vulns": [{"id": "B-2", "fix_versions": ["3"]}]}], 1, "| torch | 2.15.0 | B-2 | 3 |"),
        ([{"name": "torch", "version": "2.15.0", "vulns": [{"id": "C", "aliases": ["A-1"], "fix_versions": []}]}], 0, "| A-1 | torch | 2.15.0 | 2.14 | no |"),
    ],
)  # fmt: skip
def test_what_was_not_answered_is_not_taken_for_clean(place, monkeypatch, packages, code, said):
    monkeypatch.setattr(audit, "ask", lambda _: packages)
    assert audit.run([place / "requirements.txt"], place / "known.toml", place / "out.md") == code
    assert said in (place / "out.md").read_text()


def test_an_audit_that_does_not_run_is_an_error(place, monkeypatch):
    monkeypatch.setattr(audit, "COMMAND", ["false"])
    with pytest.raises(OSError, match="pip-audit gave no answer"):
        audit.ask([place / "requirements.txt"])


def test_the_answer_of_pip_audit_is_read(place, monkeypatch):
    answer = json.dumps({"dependencies": [{"name": "torch"}]})
    monkeypatch.setattr(audit, "COMMAND", ["python", "-c", f"import sys; open(sys.argv[-1], 'w').write({answer!r})"])
    assert audit.ask([place / "requirements.txt"]) == [{"name": "torch"}]


def test_pins_are_read_with_all_their_versions(place):
    assert audit.read_pins([place / "requirements.txt"]) == {"torch": ["2.15.0"], "numpy": ["2.4.6", "2.5.5"]}


def test_each_dependency_is_pinned_in_the_file_of_its_group_or_in_one_before():
    project = audit.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"run": project["dependencies"], **project["optional-dependencies"]}
    files = []
    for group in ("run", "export", "bundle", "develop"):
        files.append(ROOT / f"requirements/{group}.txt")
        pins = audit.read_pins(files)
        assert {
            re.split("[<>=]", name)[0].lower().replace(".", "-").replace("_", "-") for name in groups[group]
        } <= set(pins)
    text = "".join(path.read_text() for path in (ROOT / "requirements").glob("*.txt"))
    assert "://" not in text  # no index is named


def test_each_explained_finding_is_of_a_package_that_is_pinned():
    pins = audit.read_pins(sorted((ROOT / "requirements").glob("*.txt")))
    known = audit.tomllib.loads((ROOT / "docs/dependency-audit.toml").read_text())["finding"]
    assert {finding["package"] for finding in known} <= set(pins)

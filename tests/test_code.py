"""What counts as a change of the code: a real edit makes the right stages stale, and nothing else makes any."""

import ast
import hashlib
import shutil
from pathlib import Path

import pytest

from pipeline.errors import ParamsError
from pipeline.settings import code, equivalent
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

ROOT = Path(__file__).parents[1]
CELL = "voc_resnet50_os8"
SAMPLE = '''
"""A docstring."""
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Point:
    x: float = 1.5


def describe(name: "Path", *rest: int, key=None, **more) -> str:
    """Another docstring."""
    text = f"{name!r:>{rest[1]}} of {rest[0]:.2f} and {key}" f", {more}" "!" r"\\d"
    match rest:
        case (1, *others) if others:
            return text
        case _:
            pass
    try:
        value = [i for i in key if i] if key else {**more, "ü": ..., "bytes": b"1"}
    except* ValueError as error:
        raise KeyError(f"{error}") from None
    return lambda a, /, b=2, *, c: (a, b, c, value, 1_000, 0x10, 1e-7, 2j, None, True)
'''


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The code of this project in a folder of its own, which may be edited."""
    for package in ("deeplab", "pipeline"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def params():
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def hashes(copy, params, tmp_path):
    """A function that returns the hash of each stage, for the cell CELL and its data set."""

    def now():
        code.read_module.cache_clear()
        found = code.nested(code.entries(params, Places(tmp_path)))
        return {
            stage: value if isinstance(value, str) else value[CELL if CELL in value else "voc"]
            for stage, value in found.items()
        }

    return now


def stale(before, now):
    return {stage for stage in now if now[stage] != before[stage]}


def edit(path, old="", new=""):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text + new)


def test_a_hash_is_the_same_on_every_version_of_python():
    """3.12 splits f-strings otherwise than 3.11, and 3.12 and 3.13 add fields to the syntax tree."""
    tree = code.Computation(frozenset()).visit(ast.parse(SAMPLE))
    digest = hashlib.sha256(ascii(code.canonical(tree)).encode()).hexdigest()
    assert digest == "7d806df9dfb9209b37c60a5502cb8d4a7ba47a27a571de4a5c4d8bb2d859b8bc"


@pytest.mark.parametrize(
    "new",
    [
        "\n# a comment\n",
        "\n\n\n",
        "\nif TYPE_CHECKING:\n    from pathlib import Path as Place\n",
        "\nimport deeplab.metrics\n",
        '\nprint("a message", LIMIT)\n',
    ],
)
def test_a_comment_a_layout_or_a_message_makes_nothing_stale(hashes, copy, new):
    before = hashes()
    for path in [*copy.rglob("deeplab/*.py"), *copy.rglob("pipeline/**/*.py")]:
        edit(path, new=new)
    assert not stale(before, hashes())


def test_another_docstring_annotation_or_text_of_an_error_makes_nothing_stale(hashes, copy):
    path = copy / "deeplab/metrics.py"
    edit(path, new='\ndef last(x: int) -> int:\n    """One."""\n    y: int = x\n    raise ValueError("one")\n')
    before = hashes()
    edit(path, '    """One."""\n    y: int', '    """Two."""\n    y: float')
    edit(path, "(x: int) -> int", "(x: str) -> None")
    edit(path, 'ValueError("one")', 'ValueError(f"two {x}")')
    assert not stale(before, hashes())
    edit(path, "ValueError", "TypeError")
    assert stale(before, hashes())


def test_a_module_that_is_renamed_or_moved_makes_nothing_stale(hashes, copy):
    before = hashes()
    (copy / "deeplab/model.py").rename(copy / "deeplab/network.py")
    (copy / "deeplab/sums").mkdir()
    (copy / "deeplab/counts.py").rename(copy / "deeplab/sums/counts.py")
    for path in copy.rglob("*.py"):
        text = path.read_text().replace("deeplab.model", "deeplab.network")
        path.write_text(text.replace("deeplab.counts", "deeplab.sums.counts"))
    assert not stale(before, hashes())


def test_a_template_that_the_code_names_is_code(hashes, copy):
    before = hashes()
    edit(copy / "pipeline/page/style.css", new="p { margin: 0 }\n")
    assert stale(before, hashes()) == {"report"}


def test_equivalent_code_counts_as_the_old_one_until_the_next_change(hashes, copy):
    places, loss = Places(copy), copy / "deeplab/metrics.py"
    places.reports.mkdir()
    before = hashes()
    edit(loss, new="\nx = 1\n")
    changed = hashes()
    locked = {f"{stage}@x": {"params": {equivalent.CODE: {stage: value}}} for stage, value in before.items()}
    lines = equivalent.declare(locked, changed, places.equivalent_code, "x is\nnot used")
    assert {line.split()[0] for line in lines} == {before[stage] for stage in stale(before, changed)}
    assert hashes() == before
    edit(loss, new="\nx = 2\n")
    twice = hashes()
    assert stale(before, twice) == stale(before, changed)
    equivalent.declare(locked, twice, places.equivalent_code, "still not")
    assert hashes() == before
    edit(loss, "x = 2", "x = 3")
    assert stale(before, hashes()) == stale(before, changed)


def test_a_damaged_line_of_equivalent_code_is_named(tmp_path):
    path = tmp_path / "equivalent_code.txt"
    path.write_text("# a comment\n\nabc def because\n")
    with pytest.raises(ParamsError, match=r"equivalent_code.txt:3: got 'abc def because', expected OLD NEW REASON"):
        equivalent.read_equivalences(path)


def test_equivalences_form_chains_and_a_circle_ends():
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    assert equivalent.oldest(a, {a: b, b: c}) == c
    assert equivalent.oldest(a, {a: b, b: a}) == b

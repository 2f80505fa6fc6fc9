"""The README's blocks are filled byte for byte, or nothing is touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab.errors import DataError
from pipeline.results.readme import stale
from pipeline.settings.places import Places
from pipeline.stages import readme
from tests.faults import tried
from tests.faults.disk import no_file_longer_than

ROOT = Path(__file__).parents[1]
TABLE = "| Backbone | mIoU |\n| :-: | :-: |\n| ResNet50 | 77.72% ± 0.31 |\n".encode()
BLOCK = b"<!-- results:voc -->\n" + TABLE + b"<!-- /results:voc -->"


@pytest.fixture
def table(tmp_path):
    path = Places(tmp_path).table("voc")
    path.parent.mkdir(parents=True)
    path.write_bytes(TABLE)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return path


@pytest.fixture
def fill(tmp_path):
    """Run the stage."""
    return lambda: readme.run("voc", Places(tmp_path))


@pytest.fixture
def page(tmp_path):
    """README.md with the given content."""

    def write(content: bytes) -> Path:
        path = tmp_path / "README.md"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"<!-- results:voc --><!-- /results:voc -->", BLOCK),
        (b"# T\n\n<!-- results:voc -->\nold\n<!-- /results:voc -->\n\nend", b"# T\n\n" + BLOCK + b"\n\nend"),
        (b"\xef\xbb\xbf<!-- results:voc -->\n<!-- /results:voc -->", b"\xef\xbb\xbf" + BLOCK),
        (b"a\r\n<!-- results:voc -->\r\n<!-- /results:voc -->\r\n", b"a\r\n" + BLOCK.replace(b"\n", b"\r\n") + b"\r\n"),
        (
            b"\xff\xfe \\1 \\n <!-- results:voc -->\n<!-- /results:voc --> \\g<0>",
            b"\xff\xfe \\1 \\n " + BLOCK + b" \\g<0>",
        ),
        (b"", b"\n\n" + BLOCK + b"\n"),
        (b"# No markers\r\n\r\n", b"# No markers\r\n\r\n" + BLOCK.replace(b"\n", b"\r\n") + b"\r\n"),
        (
            b"<!-- results:voc -->\n<!-- /results:voc -->\n<!-- results:ade20k -->\nother\n<!-- /results:ade20k -->\n",
            BLOCK + b"\n<!-- results:ade20k -->\nother\n<!-- /results:ade20k -->\n",
        ),
    ],
    ids=[
        "empty block",
        "old table",
        "byte order mark",
        "CRLF",
        "no UTF-8 and what a regex would expand",
        "empty file",
        "no markers",
        "two blocks",
    ],
)
@tried.README
def test_a_block_is_filled_and_every_other_byte_stays(table, page, fill, before, after):
    path = page(before)
    fill()
    assert path.read_bytes() == after
    fill()
    assert path.read_bytes() == after


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<!-- results:voc -->\n", "found 1 times <!-- results:voc --> and 0 times"),
        (b"<!-- /results:voc -->\n<!-- results:voc -->\n", "expected one of each in this order"),
        (BLOCK + b"\n" + BLOCK, "found 2 times <!-- results:voc --> and 2 times"),
        (b"<!-- results:voc -->\n<!-- results:ade20k -->\n<!-- /results:voc -->\n", "no other block between"),
        (b"<!-- /results:voc -->\n", "Put both lines where the table belongs"),
    ],
)
@tried.README
def test_without_one_ordered_pair_of_markers_the_file_stays_and_the_error_says_what_to_add(
    table, page, fill, content, found
):
    path = page(content)
    with pytest.raises(DataError, match=found):
        fill()
    assert path.read_bytes() == content


@tried.README
def test_a_missing_table_names_the_stage_that_makes_it(table, page, fill):
    page(BLOCK)
    table.unlink()
    with pytest.raises(DataError, match=r"voc\.md: not found\. Run: grid run tables@voc"):
        fill()


def test_a_missing_readme_is_not_created(table, fill, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"README\.md"):
        fill()
    assert not (tmp_path / "README.md").exists()


def test_the_mode_stays_and_a_link_stays_a_link(table, page, fill, tmp_path):
    link = page(b"<!-- results:voc --><!-- /results:voc -->")
    path = link.rename(tmp_path / "docs.md")
    path.chmod(0o664)
    link.symlink_to(path)
    fill()
    assert link.is_symlink()
    assert path.read_bytes() == BLOCK
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_block_that_is_right_is_not_written_again(table, page, fill):
    path = page(BLOCK)
    before = path.stat()
    fill()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(table, page, fill):
    path = page(b"<!-- results:voc --><!-- /results:voc -->")
    with no_file_longer_than(60), pytest.raises(OSError, match=r"README\.md"):
        fill()
    assert path.read_bytes() == b"<!-- results:voc --><!-- /results:voc -->"
    assert sorted(file.name for file in path.parent.iterdir()) == ["README.md", "params.yaml", "reports"]


def test_blocks_filled_at_once_all_arrive(tmp_path, page):
    names, places = [f"set{number}" for number in range(6)], Places(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    page("".join(f"<!-- results:{name} -->\n<!-- /results:{name} -->\n" for name in names).encode())
    places.tables.mkdir(parents=True)
    for name in names:
        places.table(name).write_text(f"table of {name}\n" * 2000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-m", "pipeline.stages.readme", name] for name in names]
    fillers = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    assert [filler.communicate()[1] for filler in fillers] == [""] * len(names)
    assert not any(stale(name, places) for name in names)


@pytest.mark.parametrize(
    ("content", "words"),
    [(BLOCK, ""), (BLOCK.replace(b"77.72", b"87.72"), "results:voc is stale or was edited by hand")],
)
@tried.README
def test_a_stale_block_is_found_and_not_changed(table, page, tmp_path, content, words):
    path = page(content)
    message = stale("voc", Places(tmp_path))
    assert bool(message) == bool(words)
    assert words in message
    assert path.read_bytes() == content

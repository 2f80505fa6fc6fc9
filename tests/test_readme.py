"""The README's blocks are filled byte for byte, or nothing is touched."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab.errors import DataError
from pipeline.stages import readme
from tests.faults import tried

TABLE = "| Backbone | mIoU |\n| :-: | :-: |\n| ResNet50 | 77.72% ± 0.31 |\n".encode()
BLOCK = b"<!-- results:voc -->\n" + TABLE + b"<!-- /results:voc -->"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "voc.md"
    path.write_bytes(TABLE)
    return path


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
        (
            b"<!-- results:voc -->\n<!-- /results:voc -->\n<!-- results:ade20k -->\nother\n<!-- /results:ade20k -->\n",
            BLOCK + b"\n<!-- results:ade20k -->\nother\n<!-- /results:ade20k -->\n",
        ),
    ],
    ids=["empty block", "old table", "byte order mark", "CRLF", "no UTF-8 and what a regex would expand", "two blocks"],
)
@tried.README
def test_a_block_is_filled_and_every_other_byte_stays(table, page, before, after):
    path = page(before)
    readme.run("voc", table, path)
    assert path.read_bytes() == after
    readme.run("voc", table, path)
    assert path.read_bytes() == after


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"# no markers\n", "found 0 times <!-- results:voc --> and 0 times <!-- /results:voc -->"),
        (b"<!-- results:voc -->\n", "found 1 times <!-- results:voc --> and 0 times"),
        (b"<!-- /results:voc -->\n<!-- results:voc -->\n", "expected one of each in this order"),
        (BLOCK + b"\n" + BLOCK, "found 2 times <!-- results:voc --> and 2 times"),
        (b"<!-- results:voc -->\n<!-- results:ade20k -->\n<!-- /results:voc -->\n", "no other block between"),
        (b"<!-- results:VOC -->\n<!-- /results:VOC -->\n", "Put both lines where the table belongs"),
    ],
)
@tried.README
def test_without_one_ordered_pair_of_markers_the_file_stays_and_the_error_says_what_to_add(table, page, content, found):
    path = page(content)
    with pytest.raises(DataError, match=found):
        readme.run("voc", table, path)
    assert path.read_bytes() == content


@tried.README
def test_a_missing_table_names_the_stage_that_makes_it(tmp_path, page):
    with pytest.raises(DataError, match=r"voc\.md: not there\. Run: python -m pipeline\.grid tables@voc"):
        readme.run("voc", tmp_path / "voc.md", page(BLOCK))


def test_the_mode_stays_and_a_link_stays_a_link(table, page, tmp_path):
    path = page(b"<!-- results:voc --><!-- /results:voc -->")
    path.chmod(0o664)
    link = tmp_path / "link.md"
    link.symlink_to(path)
    readme.run("voc", table, link)
    assert link.is_symlink()
    assert path.read_bytes() == BLOCK
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_block_that_is_right_is_not_written_again(table, page):
    path = page(BLOCK)
    before = path.stat()
    readme.run("voc", table, path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(table, page, monkeypatch):
    path = page(b"<!-- results:voc --><!-- /results:voc -->")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        readme.run("voc", table, path)
    assert path.read_bytes() == b"<!-- results:voc --><!-- /results:voc -->"
    assert sorted(file.name for file in path.parent.iterdir()) == ["README.md", "voc.md"]


def test_blocks_filled_at_once_all_arrive(tmp_path, page):
    names = [f"set{number}" for number in range(6)]
    path = page("".join(f"<!-- results:{name} -->\n<!-- /results:{name} -->\n" for name in names).encode())
    for name in names:
        (tmp_path / f"{name}.md").write_text(f"table of {name}\n" * 2000)
    fillers = [fill(name, tmp_path / f"{name}.md", path) for name in names]
    assert [filler.communicate()[1] for filler in fillers] == [""] * len(names)
    assert all(readme.check(name, tmp_path / f"{name}.md", path) for name in names)


def fill(name, table, path, *more):
    command = [sys.executable, "-m", "pipeline.stages.readme", name, "--table", table, "--readme", path, *more]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (BLOCK, 0, ""),
        (BLOCK.replace(b"77.72", b"87.72"), 1, "results:voc is stale or was edited by hand"),
        (b"# no markers\n", 65, "Put both lines where the table belongs"),
    ],
)
@tried.README
def test_the_check_tells_a_stale_block_in_one_line_and_changes_nothing(table, page, content, status, words):
    path = page(content)
    checker = fill("voc", table, path, "--check")
    _, said = checker.communicate()
    assert (checker.returncode, said.count("\n")) == (status, 1 if status else 0)
    assert words in said
    assert path.read_bytes() == content

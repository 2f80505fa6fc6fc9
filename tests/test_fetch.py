import errno
import hashlib
import random
import resource
import socket
from types import SimpleNamespace

import pytest

from deeplab.errors import DataError
from pipeline.data import fetch as module
from pipeline.data.fetch import Patience, fetch
from pipeline.errors import describe
from pipeline.settings.schema import Archive
from tests.faults import tried
from tests.server import Server, answer, file, redirect

RIGHT = random.Random(0).randbytes(200_000)
WRONG = random.Random(1).randbytes(200_000)
LOGIN = b"\n <!DOCTYPE html><html><head><title>Please\n log in</title></head><body>...</body></html>"
QUICK = Patience(connect=5, silence=5, tries=4, pause=0)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server().running() as server:
        yield server


def archive(*urls, size=200_000):
    return Archive(
        name="a.tar",
        urls=urls,
        size=size,
        sha256=hashlib.sha256(RIGHT).hexdigest(),
        folders=("a",),
        max_unpacked=1_000_000,
    )


def fetched(server, folder, *answers, patience=QUICK, **what):
    """Fetch from `server`, which gives `answers` in turn, and see that all were asked for and the file is right."""
    server.script["/a"] = list(answers)
    url, sha256 = fetch(archive(f"{server.address}/a", **what), folder, patience)
    assert url == f"{server.address}/a"
    assert sha256 == hashlib.sha256(RIGHT).hexdigest()
    assert (folder / "a.tar").read_bytes() == RIGHT
    assert not server.script["/a"]
    return [path.name for path in sorted(folder.iterdir())]


def refused(server, folder, *answers, patience=QUICK, **what):
    """Fetch from `server` in vain; the message less the address."""
    server.script["/a"] = list(answers)
    with pytest.raises(DataError) as caught:
        fetch(archive(f"{server.address}/a", **what), folder, patience)
    assert not (folder / "a.tar").exists()
    start = f"{folder}/a.tar: could not be fetched: {server.address}/a: "
    end = " Run the same command again later, or put the file there yourself."
    message = str(caught.value)
    assert message.startswith(start)
    assert message.endswith(end)
    assert "\n" not in message
    return message.removeprefix(start).removesuffix(end)


def test_a_file_gets_its_name_when_it_is_right_and_nothing_else_is_left(server, tmp_path):
    assert fetched(server, tmp_path, file(RIGHT)) == ["a.tar"]
    assert server.requests == [("/a", None, None)]


def test_a_cut_fetch_goes_on_where_it_ended(server, tmp_path, capsys):
    assert fetched(server, tmp_path, file(RIGHT, cut=70_000), file(RIGHT, cut=30_000), file(RIGHT)) == ["a.tar"]
    ranges = [("/a", None, None), ("/a", "bytes=70000-", None), ("/a", "bytes=100000-", None)]
    assert server.requests == ranges
    assert f"a.tar: {server.address}/a: cut before its end. Trying again in 0 s.\n" in capsys.readouterr().out


def test_a_later_run_goes_on_where_the_last_one_ended(server, tmp_path):
    once = Patience(connect=5, silence=5, tries=1, pause=0)
    message = refused(server, tmp_path, file(RIGHT, cut=70_000), patience=once)
    assert message == "cut before its end. 70,000 bytes are kept."
    assert fetched(server, tmp_path, file(RIGHT)) == ["a.tar"]
    assert server.requests[-1] == ("/a", "bytes=70000-", None)


@tried.DOWNLOADS
def test_it_starts_over_when_the_server_has_no_ranges(server, tmp_path):
    fetched(server, tmp_path, file(RIGHT, cut=70_000), file(RIGHT, ranges=False))
    assert server.requests[-1] == ("/a", "bytes=70000-", None)


def test_a_part_that_is_complete_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(RIGHT)
    assert fetched(server, tmp_path) == ["a.tar"]
    assert server.requests == []


@pytest.mark.parametrize(
    "rest",
    [
        file(RIGHT, etag=None),  # of another file than the first piece
        answer(RIGHT[70_001:], status=206),  # another range than the one asked for
        answer(RIGHT[:1], status=206),
    ],
)
@tried.DOWNLOADS
def test_pieces_that_are_not_the_archive_are_fetched_again_as_one(server, tmp_path, rest):
    assert fetched(server, tmp_path, file(WRONG, cut=70_000), rest, file(RIGHT), size=None) == ["a.tar"]
    assert [asked[1] for asked in server.requests] == [None, "bytes=70000-", None]


@tried.DOWNLOADS
def test_a_part_that_is_longer_than_the_file_is_given_up(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(WRONG + RIGHT)
    fetched(server, tmp_path, file(RIGHT), file(RIGHT))
    assert [asked[1] for asked in server.requests] == ["bytes=400000-", None]


@tried.DOWNLOADS
def test_a_wrong_file_never_gets_the_name_and_is_kept_aside(server, tmp_path):
    message = refused(server, tmp_path, file(WRONG), file(RIGHT))
    found, expected = (hashlib.sha256(content).hexdigest() for content in (WRONG, RIGHT))
    assert message == f"a wrong file, kept as a.tar.bad: sha256 {found}, expected {expected}."
    assert (tmp_path / "a.tar.bad").read_bytes() == WRONG
    assert len(server.requests) == 1  # it would be as wrong the second time


@tried.DOWNLOADS
def test_half_a_file_is_refused_before_it_is_fetched_where_its_size_is_published(server, tmp_path):
    assert refused(server, tmp_path, file(RIGHT[:100_000])) == "has a file of 100,000 bytes, expected 200,000."
    assert list(tmp_path.iterdir()) == []


@tried.DOWNLOADS
def test_half_a_file_is_known_by_its_checksum_where_its_size_is_not_published(server, tmp_path):
    message = refused(server, tmp_path, file(RIGHT[:100_000], length=False), size=None)
    assert message.startswith("a wrong file, kept as a.tar.bad: sha256 ")


@tried.DOWNLOADS
def test_an_end_without_a_length_is_a_cut_where_the_size_is_published(server, tmp_path):
    fetched(server, tmp_path, file(RIGHT, length=False, cut=70_000), file(RIGHT))
    assert server.requests[-1] == ("/a", "bytes=70000-", None)


@pytest.mark.parametrize(("size", "limit"), [(200_000, "200,000"), (None, "1,000,000")])
@tried.DOWNLOADS
def test_a_file_without_end_is_stopped(server, tmp_path, size, limit):
    message = refused(server, tmp_path, answer(RIGHT * 10, length=False), size=size)
    assert message == f"sends more than {limit} bytes."
    assert not (tmp_path / "a.tar.part").exists()


@tried.DOWNLOADS
def test_a_web_page_is_named_as_such_and_does_not_touch_what_came_before(server, tmp_path):
    page = answer(LOGIN, headers={"Content-Type": "text/html"})
    message = refused(server, tmp_path, file(RIGHT, cut=70_000), page)
    assert message == "sends a web page ('Please log in'), not the archive. 70,000 bytes are kept."
    assert fetched(server, tmp_path, file(RIGHT)) == ["a.tar"]
    assert server.requests[-1] == ("/a", "bytes=70000-", None)


@tried.DOWNLOADS
def test_a_web_page_is_known_by_its_content_too(server, tmp_path):
    assert refused(server, tmp_path, answer(b"<html>no</html>", length=False), size=None).startswith("sends a web page")


def test_an_archive_named_as_an_encoding_is_kept_packed(server, tmp_path):
    """Servers call .tgz files gzip-encoded; unpacked on the way they would not have the published checksum."""
    fetched(server, tmp_path, file(RIGHT, cut=70_000), answer(RIGHT, headers={"Content-Encoding": "x-gzip"}))


def test_a_server_in_trouble_is_asked_again(server, tmp_path, capsys):
    assert fetched(server, tmp_path, answer(b"", 500), answer(b"", 429), file(RIGHT)) == ["a.tar"]
    said = capsys.readouterr().out
    assert "/a: answered 500 Internal Server Error. Trying again in 0 s.\n" in said
    assert "/a: answered 429 Too Many Requests. Trying again in 0 s.\n" in said


@tried.DOWNLOADS
def test_a_server_that_stays_in_trouble_is_given_up(server, tmp_path):
    message = refused(server, tmp_path, *[answer(b"", 503)] * 4)
    assert message == "answered 503 Service Unavailable."
    assert len(server.requests) == 4


def test_waits_between_tries_double_up_to_a_minute_and_progress_resets_them(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(module, "PROGRESS", 60_000)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append, monotonic=lambda: 0.0))
    trouble = [answer(b"", 500)] * 7
    patience = Patience(connect=5, silence=5, tries=8, pause=2)
    fetched(server, tmp_path, *trouble, file(RIGHT, cut=70_000), *trouble, file(RIGHT), patience=patience)
    doubling = [2, 4, 8, 16, 32, 60, 60]
    assert waits == [*doubling, 2, *doubling]


def test_a_mirror_is_asked_when_the_official_address_fails(server, tmp_path):
    server.script = {"/mirror": [file(RIGHT)]}
    urls = [f"{server.address}/{name}" for name in ("gone", "mirror")]
    assert fetch(archive(*urls), tmp_path, QUICK)[0] == urls[1]
    assert [asked[0] for asked in server.requests] == ["/gone", "/mirror"]


def test_a_mirror_goes_on_with_what_another_one_began(server, tmp_path):
    server.script = {"/a": [file(RIGHT, cut=70_000)], "/mirror": [file(RIGHT, etag='"other"')]}
    fetch(archive(f"{server.address}/a", f"{server.address}/mirror"), tmp_path, QUICK)
    assert server.requests[-1] == ("/mirror", "bytes=70000-", None)
    assert (tmp_path / "a.tar").read_bytes() == RIGHT


@tried.DOWNLOADS
def test_when_all_addresses_fail_each_ones_answer_is_told(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        with pytest.raises(DataError) as caught:
            fetch(archive(f"{server.address}/gone", closed), tmp_path, QUICK)
    expected = f"could not be fetched: {server.address}/gone: answered 404 Not Found; {closed}: Connection refused. Run"
    assert expected in str(caught.value)


@tried.DOWNLOADS
def test_a_silent_server_is_not_waited_for_without_end(server, tmp_path):
    patience = Patience(connect=5, silence=0.2, tries=2, pause=0)
    stalls = file(RIGHT, cut=70_000, stall=True)
    silent = answer(b"", length=False, stall=True)
    message = refused(server, tmp_path, stalls, silent, patience=patience)
    assert message == f"silent for 0.2 s. {module.CHUNK:,} bytes are kept."


def test_redirects_are_followed_to_http_only(server, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(RIGHT)
    (tmp_path / "archives").mkdir()
    assert "No connection adapters" in refused(server, tmp_path / "archives", redirect(f"file://{secret}"))
    server.script["/b"] = [file(RIGHT)]
    fetched(server, tmp_path / "archives", redirect(f"{server.address}/b"))


@tried.SMALL_DISK
def test_too_small_a_disk_is_found_before_the_fetch(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=150_000))
    server.script["/a"] = [file(RIGHT), file(RIGHT, cut=70_000), file(RIGHT)]
    url = f"{server.address}/a"
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(archive(url), tmp_path, QUICK)
    place = f"{tmp_path}/a.tar.part (200,000 bytes needed, 150,000 free)"
    assert describe(caught.value) == f"{place}: no space left on the disk. Free some and run the same command again."
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.tar.part").write_bytes(RIGHT[:70_000])  # with it the rest fits
    server.script["/a"] = [file(RIGHT)]
    fetch(archive(url), tmp_path, QUICK)


@tried.SMALL_DISK
def test_a_disk_that_fills_up_keeps_the_part_for_the_next_run(server, tmp_path):
    server.script["/a"] = [file(RIGHT)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fetch(archive(f"{server.address}/a"), tmp_path, QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert describe(caught.value).startswith(f"{tmp_path}/a.tar.part: no space left on the disk. ")
    fetched(server, tmp_path, file(RIGHT))
    assert server.requests[-1] == ("/a", "bytes=150000-", None)

"""Every reader of files is fed real ones with something changed, the same ones each time; long_fuzz.py takes minutes."""

import time

import pytest

from tests.faults import fuzz
from tests.faults.fuzz import TooLongError, feed, in_time, readers

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # numpy leaves a broken archive open
)
EXAMPLES = {"params": 12, "pictures": 60, "archives": 60, "README": 100}
NAMES = (
    "params", "manifest", "pictures", "archives", "record", "history", "counts", "README", "lists", "weights", "checkpoint",
)  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("real"))


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_accepts_or_refuses_whatever_it_is_given(known, tmp_path, name):
    assert tuple(known) == NAMES
    assert feed(*known[name], tmp_path, EXAMPLES.get(name, 40)) > 5


def test_a_call_that_works_or_waits_too_long_is_stopped_and_one_that_waits_for_its_turn_is_not(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    with in_time():
        time.sleep(0.3)  # takes no CPU, as when others have it
    with pytest.raises(TooLongError), in_time():
        work_for_ever()
    monkeypatch.setattr(fuzz, "HANGING", 0.1)
    with pytest.raises(TooLongError), in_time():
        time.sleep(100)


def work_for_ever():
    while True:
        pass

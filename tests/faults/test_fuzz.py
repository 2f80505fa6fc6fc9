"""Every reader of files is fed real ones with something changed, the same ones each time; long_fuzz.py takes minutes."""

import pytest

from tests.faults.fuzz import feed, readers

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

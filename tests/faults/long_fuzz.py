"""The readers are fed changed files for minutes: FUZZ_SECONDS in all, 300 by default."""

import os
import resource

import pytest

from tests.faults.fuzz import feed_for, readers
from tests.faults.test_fuzz import NAMES

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # numpy leaves a broken archive open
)
SECONDS = float(os.environ.get("FUZZ_SECONDS", "300")) / len(NAMES)
MOST = 1500  # MB; a picture of the largest size that is read takes a third of it


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("real"))


@pytest.mark.fault(
    "input",
    "anything at all in a file that is read",
    "real params, manifests, pictures, archives, records, histories, counts, READMEs, lists, weights and checkpoints, "
    "changed at random (hypothesis)",
    "accepted, or one clear error of ours; no other exception, no call of seconds, memory bounded",
)
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_accepts_or_refuses_whatever_it_is_given(known, tmp_path, record_property, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record_property("tries", feed_for(SECONDS, *known[name], tmp_path))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000 < MOST

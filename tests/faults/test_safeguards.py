"""Each safeguard of the list is still in the code, and its test is still there. That the test notices: long_safeguards.py."""

import pytest

from tests.faults.safeguards import ROOT, load


@pytest.mark.parametrize("safeguard", load(), ids=lambda safeguard: safeguard.name)
def test_a_safeguard_stands_once_in_its_file_and_has_its_test(safeguard):
    file, _, test = safeguard.test.partition("::")
    assert (ROOT / safeguard.file).read_text().count(safeguard.code) == 1
    assert safeguard.code != safeguard.instead
    assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text()

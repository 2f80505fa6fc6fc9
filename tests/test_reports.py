"""The table of docs/reports.md is that of the cases."""

import os

import pytest

from tests import test_cases, test_cases_around
from tests.reported import CASES, PAGE, block, table


@pytest.mark.cases
def test_the_page_of_reports_has_the_table_of_all_cases():
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("CASES") == "write":
        PAGE.write_text(block(text, table()), encoding="utf-8")
    else:
        assert block(text) == table(), "run: CASES=write pytest -m cases"
    assert {test_cases.__name__, test_cases_around.__name__} == {each.module for each in CASES.values()}

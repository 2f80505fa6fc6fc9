"""What many tests share, and the tables of docs/reliability.md, written by the tests that try each fault: `make test-faults`."""

import re
import signal
from collections import defaultdict
from pathlib import Path

import pytest

AREAS = ("kill", "disk", "server", "input", "security", "load", "safeguards")
HEADER = "| Fault | How it is injected | What is promised | Tries | Result |\n|---|---|---|---:|---|\n"


@pytest.fixture
def one_thread():
    """As the tiny cell says; and a forked process cannot use the threads of its parent."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """13 samples to train on."""
    from deeplab.store import Store
    from tests.tiny import write_store

    return Store(write_store(tmp_path_factory.mktemp("store"), {"train": 13})).split("train")


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """A working folder with a database of its own."""
    from tests.records import Folder, blank_database

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path, blank_database(tmp_path_factory.getbasetemp()))


def pytest_addoption(parser):
    parser.addoption("--reliability", type=Path, metavar="FILE", help="fill the tables of FILE with what was tried")
    parser.addoption("--whole", action="store_true", help="all faults are tried: drop the rows of FILE that were not")


def pytest_configure(config):
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # a shell starts what runs behind it so, and tests send Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "fault(area, fault, injected, promised): a row of docs/reliability.md. One parameter set is one try, unless the "
        "test says record_property('tries', n); record_property('measured', text) stands beside the result",
    )
    if (path := config.getoption("--reliability")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reliability(path, whole=config.getoption("--whole")))


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in item.iter_markers("fault"):
            row = fault_row(*marker.args, **marker.kwargs)
            item.user_properties.append(("fault", row))  # a property reaches the process that writes the table


def fault_row(area, fault, injected, promised):
    assert area in AREAS, f"{area}: no area of faults, expected one of {AREAS}"
    return [area, fault, injected, promised]


class Reliability:
    """Collects what each test found and fills the tables of `path` when all of them are through."""

    def __init__(self, path, whole):
        self.path, self.whole = path, whole
        self.tries = defaultdict(list)  # row -> (outcome, how many tries, what was measured, why it was left out)

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        said = dict(report.user_properties)
        if row := said.get("fault"):
            why = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
            self.tries[tuple(row)].append((report.outcome, said.get("tries", 1), said.get("measured", ""), why))

    def pytest_sessionfinish(self, exitstatus):
        keep_others = not self.whole or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        text = self.path.read_text()
        for area in AREAS:
            pattern = re.compile(f"<!-- faults:{area} -->\n(.*)<!-- /faults:{area} -->", re.DOTALL)
            found = pattern.findall(text)
            assert len(found) == 1, f"{self.path}: expected the two lines faults:{area} once"
            others = found[0].splitlines(keepends=True)[HEADER.count("\n") :] if keep_others else []
            lines = {key_of(line): line for line in others}
            tried = (table_line(row, tries) for row, tries in self.tries.items() if row[0] == area)
            lines |= {key_of(line): line for line in tried}
            block = f"<!-- faults:{area} -->\n{HEADER}{''.join(sorted(lines.values()))}<!-- /faults:{area} -->"
            text = pattern.sub(lambda _, block=block: block, text)
        self.path.write_text(text)


def key_of(line):
    """What makes a line of a table a row of its own: fault, injection and promise."""
    return tuple(line.split(" | ")[:3])


def table_line(row, tries):
    """A line of the table: `tries` are those of all tests that share `row`."""
    _, fault, injected, promised = row
    tried = sum(count for outcome, count, _, _ in tries if outcome != "skipped")
    if failed := sum(outcome == "failed" for outcome, *_ in tries):
        result = f"**{failed} failed**"
    elif tried:
        result = "; ".join(dict.fromkeys(["held", *(measured for _, _, measured, _ in tries if measured)]))
    else:
        result = f"not tried: {tries[0][3]}"
    return f"| {fault} | {injected} | {promised} | {tried} | {result} |\n"

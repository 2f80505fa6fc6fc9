"""The safeguards of the code, each with the change that switches it off and the test that has to notice."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "safeguards"


@dataclass(frozen=True, kw_only=True)
class Safeguard:
    """`code`, found once in `file`, becomes `instead`; then `test` has to fail."""

    name: str
    file: str
    code: str
    instead: str
    test: str  # as pytest is told it: tests/test_store.py::test_a_truncated_file_is_refused

    def switch_off(self, root: Path) -> None:
        """Take it out of the copy of the project at `root`."""
        path = root / self.file
        path.write_text(path.read_text().replace(self.code, self.instead))


def load() -> list[Safeguard]:
    """Those of all files of `safeguards`."""
    tables = [tomllib.loads(path.read_text()) for path in sorted(FILES.glob("*.toml"))]
    return [Safeguard(**row) for table in tables for row in table["safeguard"]]

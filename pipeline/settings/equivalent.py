"""Changes of the code that were proven to move no number: reports/equivalent_code.txt.

A line `OLD NEW REASON` says that code with the hash NEW gives the numbers of code with the hash OLD. It holds as long
as NEW, or the end of a chain of lines that begins with NEW, is what runs: DVC and the tables then see the hash OLD, and
nothing is stale. Any further change of the code ends it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError
from pipeline.files import write_whole

HEADER = "# Changes of the code that move no number: OLD NEW REASON. Written by `grid equivalent --reason REASON`.\n"
CODE = "reports/code.json"  # as dvc.yaml names it


def oldest(now: str, older: Mapping[str, str]) -> str:
    """The start of the chain of equivalences that ends with `now`."""
    seen = {now}
    while (before := older.get(now)) and before not in seen:
        seen.add(now := before)
    return now


def read_equivalences(path: Path) -> dict[str, str]:
    """New hash -> old hash. Raises ParamsError for a line that is not `OLD NEW REASON`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        old, new, reason = (*line.split(maxsplit=2), "", "")[:3]
        if len(old) != 64 or len(new) != 64 or not reason:
            raise ParamsError(f"{path}:{number}: got {line[:40]!r}, expected OLD NEW REASON")
        found[new] = old
    return found


def declare(locked: Mapping[str, Any], now: Mapping[str, str], path: Path, reason: str) -> list[str]:
    """Add a line to `path` for each stage whose recorded code differs from the code of `now`; returns the lines.

    locked: the stages of dvc.lock; now: `train.CELL` and so on -> hash.
    """
    pairs = {(old, now[entry]) for entry, old in recorded(locked) if now.get(entry, old) != old}
    lines = [f"{old} {new} {' '.join(reason.split())}" for old, new in sorted(pairs)]
    if lines:
        text = path.read_text(encoding="utf-8") if path.exists() else HEADER
        write_whole(path, text + "".join(f"{line}\n" for line in lines))
    return lines


def recorded(locked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The entries of code.json that stages were run with, and their values then."""
    for stage in locked.values():
        yield from stage.get("params", {}).get(CODE, {}).items()

"""dvc.lock in parts, one per stage that runs: DVC's own call then costs the same in a grid of twelve cells and of 200.

For each stage DVC reads all of dvc.lock and writes it anew: seconds when it is long. `dvc --wait-for-lock repro
--single-item STAGE` as the runner calls it finds and leaves the entry of its stage in a file of the same form, and the
runner puts the entries into dvc.lock, several at a time when that takes long. Parts that a killed runner has left are
put there by the next one.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.files import whole
from pipeline.runner.graph import open_repo
from pipeline.runner.quick_params import quick_params
from pipeline.runner.repair import is_whole, replace
from pipeline.settings.stage_names import lock_of, short

PARTS = Path("runs/.locks")  # below it the folders of the files that they are parts of
SHARE = 0.1  # of the time may go into writing dvc.lock


class LockParts:
    """The entries of the stages that run and have run."""

    def __init__(self, folder: Path = PARTS) -> None:
        self.folder = folder
        self.done: list[Path] = []
        self.began, self.spent = time.monotonic(), 0.0
        self.known: dict[Path, dict[str, Any]] = {}  # dvc.lock -> what stands in it

    def part(self, name: str) -> Path:
        """Where the entry of stage `name` stands while it runs."""
        return self.folder / lock_of(name).parent / f"{short(name)}.lock"

    def begin(self, name: str) -> Path:
        """Write the part of stage `name` as it stands in dvc.lock."""
        from dvc.utils.serialize import dump_yaml, load_yaml

        lock, part, entry = lock_of(name), self.part(name), short(name)
        if lock not in self.known:
            self.known[lock] = load_yaml(str(lock)).get("stages", {}) if lock.exists() else {}
        held = {entry: self.known[lock][entry]} if entry in self.known[lock] else {}
        part.parent.mkdir(parents=True, exist_ok=True)
        with whole(part) as partial:
            dump_yaml(str(partial), {"schema": "2.0", "stages": held})
        return part

    def end(self, name: str, well: bool) -> None:
        """Note that stage `name` has ended; what one that has not ended well left is given up."""
        if well:
            self.done.append(self.part(name))
            if self.spent <= SHARE * (time.monotonic() - self.began):
                with suppress(OSError):  # a full disk must not stop what runs, and `flush` at the end will tell it
                    self.flush()
        else:
            self.part(name).unlink(missing_ok=True)

    def flush(self) -> None:
        """Put what is done into dvc.lock."""
        began = time.monotonic()
        put_together(self.done, self.folder)
        self.done.clear()
        self.spent += time.monotonic() - began


def put_together(parts: list[Path], folder: Path) -> None:
    """Put `parts`, which lie in `folder`, each into its dvc.lock, and delete them."""
    if not parts:
        return
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    with open_repo() as repo, repo.lock:
        for path in {home(part, folder) for part in parts}:
            lock = parse_yaml_for_update(path.read_text(), str(path)) if path.exists() else {}
            lock.setdefault("schema", "2.0")
            lock["stages"] = lock.get("stages", {})
            for part in (part for part in parts if home(part, folder) == path):
                lock["stages"].update(parse_yaml_for_update(part.read_text(), str(part)).get("stages", {}))
            replace(path, dumps_yaml(lock))
    for part in parts:
        part.unlink()


def home(part: Path, folder: Path) -> Path:
    """The dvc.lock that a part in `folder` is of."""
    return part.relative_to(folder).with_name("dvc.lock")


def recover(folder: Path = PARTS) -> None:
    """Put into dvc.lock what a killed runner had no time for; what is older than dvc.lock is not of use any more."""
    left = sorted(folder.rglob("*.lock"))
    put_together([part for part in left if is_newer(part, home(part, folder)) and is_result(part)], folder)
    for part in left:
        part.unlink(missing_ok=True)


def is_newer(part: Path, lock: Path) -> bool:
    """Whether `part` was written after `lock`."""
    return not lock.exists() or part.stat().st_mtime_ns > lock.stat().st_mtime_ns


def is_result(part: Path) -> bool:
    """Whether a part is whole, and not as empty as it was before the first run of its stage."""
    from dvc.utils.serialize import load_yaml

    return is_whole(part.read_text(encoding="utf-8")) and bool(load_yaml(str(part)).get("stages"))


def run_stage(part: Path, name: str) -> int:
    """Run DVC on stage `name` with `part` for its dvc.lock; its exit code."""
    from dvc import dvcfile
    from dvc.cli import main

    class Part(dvcfile.Lockfile):  # type: ignore[misc]
        relpath = str(lock_of(name))  # in DVC's messages

        def _check_gitignored(self) -> None:
            """It is, and shall be."""

    dvcfile.ProjectFile._lockfile = property(lambda self: Part(self.repo, str(part.resolve())))
    with quick_params():
        return int(main(["--wait-for-lock", "repro", "--single-item", name]))


if __name__ == "__main__":
    sys.exit(run_stage(Path(sys.argv[1]), sys.argv[2]))

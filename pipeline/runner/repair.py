"""Mend what a DVC that was killed or found the disk full while it wrote has left torn, so that the next can read it.

DVC writes dvc.lock and its list of who works on what in place, and whoever is killed stays in that list. The runner
mends both when it starts; before `dvc repro` alone it is `python -m pipeline.runner.repair`. What is cut off dvc.lock
runs again, or comes from DVC's run cache without running, as a training does.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import run_command
from pipeline.files import whole
from pipeline.runner.guard import is_alive

LOCKS = (Path("dvc.lock"), Path("examples/dvc.lock"))
NONE = "schema: '2.0'\n"  # a dvc.lock without stages
STAGES = "stages:\n"  # what follows where there are some
TMP = Path(".dvc/tmp")  # where DVC keeps who reads and writes what


def mend(locks: Sequence[Path] = LOCKS, tmp: Path = TMP) -> list[str]:
    """Mend them, and say what was done. What is whole, or broken in another way, is left alone."""
    said = [
        f"{lock}: torn by a kill or a full disk, {lost} bytes cut off its end. What they told of runs again."
        for lock in locks
        if (lost := cut_torn(lock))
    ]
    if why := remove_useless(tmp):
        said.append(f"{tmp / 'rwlock'}: {why}, removed")
    return said


def cut_torn(lock: Path) -> int:
    """Cut the entry that was not written to its end off dvc.lock, and say how many bytes that was."""
    text = lock.read_text(encoding="utf-8") if lock.exists() else NONE
    begins = [match.start() for match in re.finditer(r"^  \S", text, re.M)]
    # A kill tears the end, so that is read alone: all of a long file takes DVC's reader seconds.
    end = NONE + STAGES + text[begins[-1] :] if begins else text
    if is_whole(end) or not (NONE + STAGES).startswith(text[: len(NONE + STAGES)]):
        return 0
    kept = text[: begins[-1]] if begins[1:] else NONE
    if not is_whole(kept) or "\n<<<<<<<" in text:  # a merge that is not finished is not ours to end
        return 0
    replace(lock, kept)
    return max(1, len(text) - len(kept))


def is_whole(text: str) -> bool:
    """Whether DVC can read this dvc.lock."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(text, "dvc.lock"))
    except (YAMLFileCorruptedError, Invalid):
        return False
    return True


def remove_useless(tmp: Path) -> str:
    """Remove DVC's list of readers and writers if it cannot be read or all that it names have ended; say why.

    DVC looks for their numbers only, and those may by now be the numbers of others: in a container they soon are.
    """
    from dvc.lock import make_lock

    path = tmp / "rwlock"
    if not path.exists():
        return ""
    with make_lock(str(tmp / "rwlock.lock"), tmp_dir=str(tmp)):  # as DVC does while it writes
        text, written = path.read_text(encoding="utf-8"), path.stat().st_mtime
        processes = {int(number) for number in re.findall(r'"pid": (\d+)', text)}
        if not is_json(text):
            why = "torn by a kill or a full disk"
        elif processes and not any(is_alive(process, written) for process in processes):
            why = "left by processes that have ended"
        else:
            return ""
        path.unlink()
        return why


def is_json(text: str) -> bool:
    """Whether `text` is whole JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def replace(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all, also when the power fails."""
    with whole(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("\n".join(mend()) or "nothing to mend")


if __name__ == "__main__":
    run_command(main)

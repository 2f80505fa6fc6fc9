"""A full disk for a test: a real one, small and of its own, or a limit on how long a file may get."""

import os
import resource
import subprocess
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from pipeline.errors import run_command

NO_SPACE = "no space left on the disk. Free some and run the same command again."


class Disk:
    """A tmpfs at `path`. `fill` leaves so many bytes of it, `free` gives them back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ballast = path / ".ballast"

    def fill(self, left: int = 0) -> None:
        with self.ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
            file.truncate(max(0, file.tell() - left))

    def free(self) -> None:
        self.ballast.unlink()

    def files(self) -> dict[str, bytes]:
        """Every file but the ballast."""
        found = (path for path in self.path.rglob("*") if path.is_file() and path != self.ballast)
        return {str(path.relative_to(self.path)): path.read_bytes() for path in found}


@contextmanager
def mounted(path: Path, *words: str):
    """Mount at `path` for as long as the block lasts; the test is left out where nobody may."""
    path.mkdir(exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", *words, path], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def small_disk(path: Path, size: str):
    with mounted(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield Disk(path)


@contextmanager
def no_file_longer_than(size: int):
    """RLIMIT_FSIZE: Python ignores its signal, so that a write fails as on a full disk. Needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def outcome(command) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr of what a command does; 0 also where it says nothing of a code."""
    said = StringIO()
    with redirect_stderr(said), redirect_stdout(StringIO()), pytest.raises(SystemExit) as caught:
        run_command(command)
    return int(caught.value.code or 0), said.getvalue().splitlines()

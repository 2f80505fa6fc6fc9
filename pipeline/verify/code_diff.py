"""The code of a commit, module by module, and which modules compute something else in another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.data.unpack import unpack
from pipeline.errors import ParamsError
from pipeline.settings import code
from pipeline.training.provenance import git

PACKAGES = ("deeplab", "pipeline")
MAX_BYTES = 1 << 28  # of code


def file_at(root: Path, commit: str, path: Path) -> str:
    """The text of `path`, a file below `root`, in `commit`; empty where the commit does not have it."""
    try:
        return git("show", f"{commit}:./{path.relative_to(root).as_posix()}", folder=root)
    except ParamsError:
        return ""


@contextmanager
def code_at(root: Path, commit: str) -> Iterator[Path]:
    """A temporary folder with the packages of `commit`; empty where the repository of `root` does not have them."""
    with TemporaryDirectory() as folder:
        archive, out = Path(folder) / "code.tar", Path(folder) / "code"
        out.mkdir()
        try:
            top = Path(git("rev-parse", "--show-toplevel", folder=root))
            git("archive", f"--output={archive}", commit, *PACKAGES, folder=top)
        except ParamsError:
            yield out
            return
        unpack(archive, out, PACKAGES, MAX_BYTES)
        yield out


def changed_modules(stage: str, chosen: frozenset[str], before: Path, after: Path) -> list[str] | None:
    """The modules that compute something else for `stage` in the folder `after` than in `before`.

    chosen: the entries of CHOICES in pipeline/settings/code.py that the stage can use. None when one of the folders
    does not have the stage.
    """
    try:
        old, new = (code.modules_of(stage, chosen, root) for root in (before, after))
    except (OSError, SyntaxError):
        return None
    return sorted(module for module in old.keys() | new.keys() if old.get(module) != new.get(module))

"""What a user's mistake looks like: one line, and an exit code from the table below."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from deeplab.errors import DataError, NonFiniteError, SettingsError, WorkerError


class ParamsError(SettingsError):
    """params.yaml or a command's arguments are wrong."""


class BusyError(RuntimeError):
    """Another process works on the same cell."""


class StoppedError(RuntimeError):
    """A signal asked to stop; the state is saved and the same command goes on from it."""


class MismatchError(RuntimeError):
    """A published number is not what it claims to be."""


# After sysexits.h, so that a scheduler can tell "mend it" from "run it again".
EXIT_CODES: dict[type[BaseException], int] = {
    MismatchError: 1,
    DataError: 65,
    NonFiniteError: 70,
    WorkerError: 71,
    BusyError: 73,
    OSError: 74,
    StoppedError: 75,
    SettingsError: 78,
}


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, or the code of the mistake after one line on stderr.

    Anything that is not in EXIT_CODES is a bug and keeps its traceback; DEEPLAB_TRACEBACK=1 shows it for the others
    too. A command that DVC has started ends with DVC.
    """
    from pipeline.process import die_with_dvc

    if "DVC_STAGE" in os.environ:
        die_with_dvc()
    try:
        main()
    except tuple(EXIT_CODES) as mistake:
        if os.environ.get("DEEPLAB_TRACEBACK"):
            raise
        print(f"error: {describe(mistake)}", file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(mistake, kind)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def describe(mistake: BaseException) -> str:
    """One line for a user; a full disk is named as such, whatever the library called it."""
    if isinstance(mistake, OSError) and mistake.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        place = f"{mistake.filename}: " if mistake.filename else ""
        return f"{place}no space left on the disk. Free some and run the same command again."
    if isinstance(mistake, FileNotFoundError) and mistake.filename:
        return f"{mistake.filename}: no such file or folder"
    if isinstance(mistake, PermissionError) and mistake.filename:
        return f"{mistake.filename}: no permission. Give yourself access to it, or link another folder there."
    if isinstance(mistake, FileExistsError | NotADirectoryError) and mistake.filename:
        return f"{mistake.filename}: a file is in the way of a folder. Move it away, or name another place."
    if isinstance(mistake, IsADirectoryError) and mistake.filename:
        return f"{mistake.filename}: a folder is in the way of a file. Move it away, or name another place."
    if isinstance(mistake, OSError) and mistake.errno == errno.EROFS:
        place = f"{mistake.filename}: " if mistake.filename else ""
        return f"{place}the disk can only be read. Name another place, or mount it to be written."
    if isinstance(mistake, OSError) and mistake.errno is not None and mistake.filename:
        return f"{mistake.filename}: {mistake.strerror}"
    return str(mistake)

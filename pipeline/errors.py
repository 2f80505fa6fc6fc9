"""A user's mistake is one line and an exit code from the table below."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from deeplab.errors import DataError, NonFiniteError, SettingsError, WorkerError
from pipeline.process import name_user


class ParamsError(SettingsError):
    """params.yaml or a command's arguments are wrong."""


class BusyError(RuntimeError):
    """Another process works on the same thing."""


class StoppedError(RuntimeError):
    """A signal asked to stop. The state is saved, and the same command continues from it."""


class MismatchError(RuntimeError):
    """A published number is not what it claims to be."""


# As in sysexits.h, so that a scheduler can distinguish "repair it" from "run it again".
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

FULL = "no space left on the disk. Free some and run the same command again."
NO_PERMISSION = "no permission. Give yourself access to it, or work in a copy of the project."
NO_FOLDER = "a file is in the way of a folder. Move it away, or name another place."
DISK_MESSAGES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EROFS: "read-only file system. Choose another location or remount it writable.",
}
FILE_MESSAGES = {
    **DISK_MESSAGES,
    errno.ENOENT: "no such file or folder",
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.EEXIST: NO_FOLDER,
    errno.ENOTDIR: NO_FOLDER,
    errno.EISDIR: "a folder is in the way of a file. Move it away, or name another place.",
}


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, or the code of the mistake after one line on stderr.

    What is not in EXIT_CODES is a bug and keeps its traceback. DEEPLAB_TRACEBACK=1 shows it for mistakes too.
    """
    name_user()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # The name of a file or the title of a data set may have characters that the terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
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
    """The message of a mistake in one line. A full disk has the same message whatever the library calls it."""
    if not isinstance(mistake, OSError) or mistake.errno is None:
        return str(mistake)
    if mistake.filename:
        return f"{mistake.filename}: {FILE_MESSAGES.get(mistake.errno, mistake.strerror)}"
    return DISK_MESSAGES.get(mistake.errno, str(mistake))

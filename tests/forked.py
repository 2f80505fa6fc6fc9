"""Part of a test in a forked process, which never goes on as a second pytest."""

import os
import traceback


def forked(work, *arguments):
    """Begin `work(*arguments)` in a child; its number. It ends with 0, or with 1 after an exception."""
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

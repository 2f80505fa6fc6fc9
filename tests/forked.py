"""Part of a test in a forked process, which never goes on as a second pytest."""

import functools
import os
import traceback

import torch

# After torch.export, torch counts a GPU that is not there. The first backward would then start threads for it, and with
# those no forked process can train. So the first backward is here, before any test.
torch.ones(1, requires_grad=True).backward()


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


def apart(test):
    """`test` in a forked process: what it leaves behind in the libraries ends with it."""

    @functools.wraps(test)
    def run(*arguments, **fixtures):
        child = forked(lambda: test(*arguments, **fixtures))
        assert os.waitpid(child, 0)[1] == 0, "the traceback is on stderr"

    return run

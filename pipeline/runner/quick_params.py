"""DVC's reading of params.yaml, without what makes it slow in a large grid."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any


@contextmanager
def quick_params() -> Iterator[None]:
    """Let DVC parse the same text once, and go straight to a key in it.

    It parses the file several times per stage, and walks over all values in it for each key: minutes with 200 cells.
    """
    from dvc.dependency import param

    read, search = param.load_path, param.dpath

    @functools.cache
    def parse(path: str, fs: Any, text: bytes) -> Any:  # noqa: ARG001  what was read decides, not when
        return read(path, fs)

    param.load_path = lambda path, fs, **options: (
        read(path, fs, **options) if options else parse(path, fs, Path(path).read_bytes())
    )
    param.dpath = SimpleNamespace(get=look_up, search=search.search)
    try:
        yield
    finally:
        param.load_path, param.dpath = read, search


def look_up(values: Any, key: str, separator: str) -> Any:
    """What stands at `key`; KeyError when nothing does."""
    for word in key.split(separator):
        if not isinstance(values, dict):
            raise KeyError(key)
        values = values[word]
    return values

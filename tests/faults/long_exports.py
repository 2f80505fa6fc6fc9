"""The exports that take long, on a full disk."""

import pytest

from tests.faults.disk import small_disk
from tests.faults.test_full_disk import PROMISE, check, export_to, one_thread  # noqa: F401  a fixture


@pytest.mark.fault("disk", "a full disk", "a tmpfs without a free byte", PROMISE)
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_on_a_full_disk_an_export_says_so_in_one_line_and_loses_nothing(tmp_path, name):
    with small_disk(tmp_path / "disk", "50m") as disk:
        command = export_to(name)(disk.path, tmp_path)
        disk.fill()
        before, failed = check(command, disk.files, disk.free)
        assert failed == before

"""The disk fills up while a data set is prepared: another process takes what was free, at each part of the work."""

from functools import partial

import pytest

from deeplab.store_writer import StoreWriter
from pipeline.data import card
from pipeline.pictures import sheet
from pipeline.stages import prepare
from tests.faults.disk import NO_SPACE, outcome, small_disk
from tests.raw import dataset_config, write_ade20k

STORE = ["image_files.txt", "images.bin", "manifest.json", "masks.bin"]


def fill_before(owner, name):
    """Another process fills the disk before the function `name` begins."""

    def arrange(patch, fill):
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *words: (fill(), original(*words))[1])

    return arrange


def fill_after_room_was_taken(patch, fill):
    reserve = StoreWriter.reserve
    patch.setattr(StoreWriter, "reserve", lambda *words: (reserve(*words), fill()))


def fill_where_no_room_can_be_taken(patch, fill):
    patch.setattr(StoreWriter, "reserve", lambda *_: fill(4096))  # as a file system without fallocate


# What fills the disk -> the file that is named, and what of the store is there then.
MOMENTS = {
    "the masks are written": (fill_where_no_room_can_be_taken, "store", []),
    "the room was taken": (fill_after_room_was_taken, "store", []),
    "the card is written": (fill_before(card, "write_card"), "card/card.json", STORE),
    "the sheet is written": (fill_before(sheet, "write_sheet"), "store/sheet.png", STORE),
}


@pytest.mark.fault(
    "disk",
    "the disk fills up while a data set is prepared",
    "a tmpfs that is full when the room was taken, masks, the card or the sheet are written; packed and by files",
    "exit code 74, one line that names what could not be written; no half store; with space it ends as undisturbed",
)
@pytest.mark.parametrize("store", ["packed", "files"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_fills_up_while_a_data_set_is_prepared_leaves_no_half_store(tmp_path, moment, store):
    write_ade20k(tmp_path / "raw", train=6, val=2)
    config = dataset_config("ade20k", {"train": 6, "val": 2}, store=store)
    command = partial(prepare.build, "a", config, ("train", "val"), tmp_path / "raw", workers=1)
    arrange, named, left = MOMENTS[moment]
    with small_disk(tmp_path / "disk", "1m") as disk:
        out, card = disk.path / "store", disk.path / "card"
        assert outcome(lambda: command(out=out, card=card)) == (0, [])
        undisturbed = disk.files()
        with pytest.MonkeyPatch.context() as patch:
            arrange(patch, disk.fill)
            assert outcome(lambda: command(out=out, card=card)) == (74, [f"error: {disk.path}/{named}: {NO_SPACE}"])
        found = disk.files()
        kept = ["card/card.json", "card/card.md", *(f"store/{name}" for name in left), "store/sheet.png"]
        assert sorted(found) == sorted(kept)
        assert found.items() <= undisturbed.items()
        disk.free()
        assert outcome(lambda: command(out=out, card=card)) == (0, [])
        assert disk.files() == undisturbed

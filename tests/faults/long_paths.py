"""The whole project in a folder whose name nobody would choose, with raw data in another one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_pipeline import checkout, dvc, run
from tests.tiny import tiny_params

ODD = ["with spaces and 'quotes' \"two\"", "-leading dash", "日本語 ünïcödé", "a $HOME `id` ;touch x& #1"]


def raw_data(folder: Path) -> None:
    """Twelve images and masks for training and four for validation, in names with a space and other letters."""
    for split, count in (("train", 12), ("val", 4)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((40, 48), np.uint8)
            mask[:, 3 * index :] = 1
            name = f"-Bild {index} é"
            Image.fromarray(np.stack([mask * 200 + 20] * 3, axis=-1)).save(folder / f"images/{split}/{name}.png")
            Image.fromarray(mask).save(folder / f"masks/{split}/{name}.png")
    (folder / "classes.txt").write_text("0 background\n1 thing\n")


@pytest.mark.fault(
    "disk",
    "odd names of folders",
    "project and data in folders with spaces, quotes, a leading dash, other letters, $, #, & and ;",
    "dvc repro goes from raw data to the README, and predict reads and writes there",
)
@pytest.mark.parametrize("name", ODD)
def test_a_project_lives_in_a_folder_of_any_name(tmp_path, name):
    folder = checkout(tmp_path / name)
    raw_data(tmp_path / f"raw {name}")
    (folder / "data/raw").mkdir(parents=True)
    (folder / "data/raw/tiny").symlink_to(tmp_path / f"raw {name}")

    def own_images(params):
        params["datasets"]["tiny"].update(
            format="folder",
            folder={
                "images": "images/{split}", "masks": "masks/{split}", "classes": "classes.txt", "masks_are": "labels", "ignore": [],
                "map": {}, "pairs": None,
            },
        )  # fmt: skip
        params["recipes"]["tiny"].update(epochs=1)
        params["seeds"] = [0]

    tiny_params(folder / "params.yaml", own_images)
    (folder / "README.md").write_text("# Mine\n\n<!-- results:tiny -->\n<!-- /results:tiny -->\n")
    run("git", "init", "-q", cwd=folder)
    dvc("repro", "readme@tiny", cwd=folder)
    assert "%" in (folder / "README.md").read_text().splitlines()[5]
    run(
        "python",
        "-m",
        "pipeline",
        "predict",
        "tiny_os8",
        tmp_path / f"raw {name}/images/val",
        "--out=-odd out",
        cwd=folder,
    )
    assert len(list((folder / "-odd out/masks").iterdir())) == 4
    assert {path.name for path in tmp_path.iterdir()} == {name, f"raw {name}"}  # no word became a command

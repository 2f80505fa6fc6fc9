"""Write the evidence behind the tables as one zip: the committed files, what describes them, and a list of hashes.

The same files, commit and environment give the same bytes. There are never weights or images in it.
"""

import shutil
import tempfile
import zipfile
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import ParamsError
from pipeline.files import readable, whole
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.training.provenance import LOCK, file_sha256, git, git_state
from pipeline.verify import committed
from pipeline.verify.bundle.check import check, files_in, read_table, require_name
from pipeline.verify.bundle.keys import SIGNATURE, SUMS, read_private

NEEDS = ("rocrate", "mlcroissant", "cyclonedx", "markdown_it")
EVIDENCE = ("params.yaml", "dvc.yaml", "dvc.lock", "LICENSE", "reports")
TEXTS = {".csv", ".json", ".lock", ".md", ".tex", ".txt", ".yaml", ""}  # neither weights nor pictures
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{}</title>
<style>body {{max-width: 64em; margin: 2em auto; font-family: sans-serif}} td, th {{padding: .2em .8em}}</style></head>
<body>
{}</body></html>
"""


def write(bundle: Path | None, key: Path | None, places: Places) -> list[str]:
    """Write `bundle`, signed with the private `key` if there is one, and check it; the lines of the check.

    Raises ParamsError for a wrong name or key, outside of git, and without the packages; MismatchError when a number
    does not hold by `grid verify --fast`.
    """
    target, signer = require_name(bundle), read_private(key) if key else None
    if missing := [package for package in NEEDS if find_spec(package) is None]:
        install = "pip install rocrate mlcroissant cyclonedx-python-lib"
        raise ParamsError(f"--bundle: the package {missing[0]} is missing. Run: {install}")
    try:
        written = datetime.fromisoformat(git("log", "-1", "--format=%cI", folder=places.root))
    except ParamsError:
        raise ParamsError("--bundle: found no commit to name. Run: git init && git add . && git commit") from None
    committed.run([], places, fast=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect(folder, places)
        describe(folder, written, places, signed=bool(signer))
        sums = "".join(f"{file_sha256(path)}  {name}\n" for name, path in files_in(folder).items()).encode()
        (folder / SUMS).write_bytes(sums)
        if signer:
            (folder / SIGNATURE).write_bytes(signer.sign(sums))
        with whole(target) as partial:
            pack(folder, partial)
            lines = check(partial, signer.public_key() if signer else None)
    return [*lines, f"{target}: {target.stat().st_size / 1e6:.1f} MB. Check it anywhere: grid verify --bundle {target}"]


def collect(folder: Path, places: Places) -> None:
    """Copy to `folder` what git does not ignore of EVIDENCE, what trainings recorded, and the pinned packages."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *EVIDENCE, folder=places.root)
    found = {name: places.root / name for name in listed.split("\0")}
    found |= {f"runs/{path.parent.name}/run.json": path for path in places.runs.glob("*/run.json")}
    found |= {f"requirements/{path.name}": path for path in LOCK.parent.glob("*.txt")}
    for name, path in found.items():
        if path.is_file() and path.suffix in TEXTS and not path.name.startswith("."):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)


def describe(folder: Path, written: datetime, places: Places, signed: bool) -> None:
    """Add to `folder` what describes its files, for people and for programs."""
    from jinja2 import Template
    from markdown_it import MarkdownIt

    from pipeline.verify.bundle.formats import crate, dataset, packages

    own, datasets, state = Places(folder), load_params(places.params).datasets, git_state()
    (folder / "croissant").mkdir()
    for name, config in datasets.items():
        if (card := own.data_card(name) / "card.json").exists():
            with readable(places.data_card(name) / "card.json", f"Run: dvc repro -f prepare@{name}"):
                text = dataset(config, card)
            (folder / "croissant" / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / "packages.cdx.json").write_text(packages(written), encoding="utf-8")
    rows = [row | {"dataset": name} for name in datasets for row in read_table(name, own)]
    template = Template(Path(__file__).with_name("README.md").read_text(encoding="utf-8"), trim_blocks=True)
    text = template.render(rows=rows, written=f"{written:%Y-%m-%d}", git=state, signed=signed)
    (folder / "README.md").write_text(text, encoding="utf-8")
    about = {
        "name": f"Evidence behind {len(rows)} numbers of a DeepLabv3 grid",
        "description": "Tables, records, and descriptions of data, code and packages. README.md says what they prove.",
        "datePublished": written.isoformat(),
        "version": state["commit"],
    }
    page = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    crate(folder, PAGE.format(about["name"], page), about)


def pack(folder: Path, target: Path) -> None:
    """Zip `folder` without compression, which differs between versions of zlib, and without times."""
    with zipfile.ZipFile(target, "w") as packed:
        for name, path in files_in(folder).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            packed.writestr(info, path.read_bytes())

"""The evidence in one file: what is in it, that the same inputs give the same bytes, and that every change is named."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from random import Random

import pytest

from deeplab.errors import DataError
from pipeline.__main__ import main
from pipeline.errors import MismatchError, ParamsError
from pipeline.results.latex import latex
from pipeline.results.records import read_results
from pipeline.results.table import make_rows, markdown, sheet
from pipeline.settings.places import Places
from pipeline.verify.bundle.check import MAX_BYTES, check, check_record, check_tables
from pipeline.verify.bundle.keys import SIGNATURE, SUMS, read_private, read_public
from tests.archives import write_tar, write_zip
from tests.records import CELL, ROOT, Folder

pytest.importorskip("rocrate", reason="needs requirements/bundle.txt")
pytest.importorskip("mlcroissant", reason="needs requirements/bundle.txt")
from pipeline.verify.bundle.write import describe, write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries of the formats

CHANGED = pytest.mark.fault(
    "input",
    "a bundle of evidence is changed",
    "one byte of each of its files, in the zip and in a new zip; a file removed, added or renamed; a number in a record, a "
    "table or its LaTeX with a new list of hashes",
    "`grid verify --bundle` names the file in one line, exit code 1",
)
HOSTILE = pytest.mark.fault(
    "input",
    "a file that is no bundle, or of somebody else",
    "cut at every part, `..` and absolute names, a bomb, a name twice, other zips, a tar, no zip; a wrong key, a signature that "
    "is missing, changed or of another list",
    "one line, exit code 1, or 78 for a file that is no key; nothing is written outside of a temporary folder",
)


FACTS = {"cell": CELL, "dataset": "shapes", "seeds": {}}


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    date = {"GIT_COMMITTER_DATE": "2026-01-02T03:04:05+00:00", "GIT_AUTHOR_DATE": "2026-01-02T03:04:05+00:00"}
    subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", **date}
    )


def project(folder):
    """What is committed of the demo, and what must stay out of a bundle, as a repository of its own."""
    names = ("params.yaml", "dvc.yaml", "dvc.lock", "README.md", "LICENSE", ".gitignore", "reports")
    listed = subprocess.run(["git", "ls-files", *names], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Demo")
    for name in (f"runs/{CELL}/weights/seed9.safetensors", f"reports/figures/{CELL}/a.png", "reports/index.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a picture, or weights")
    (folder / f"runs/{CELL}/run.json").write_text(json.dumps(FACTS))
    (folder / "reports/tables/sheet.png").write_bytes(b"not ignored by git")
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A private and a public key, as openssl makes them, and the public key of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        run = ("openssl", "genpkey", "-algorithm", "ed25519", "-out", f"{name}.pem")
        subprocess.run(run, cwd=folder, check=True, capture_output=True)
        run = ("openssl", "pkey", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub")
        subprocess.run(run, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def signed(here, keys, tmp_path_factory):
    """A bundle of the demo, signed."""
    target = tmp_path_factory.mktemp("bundle") / "evidence.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        write(target, keys / "own.pem", Places())
    return target


@pytest.fixture
def bundle(signed, tmp_path, monkeypatch):
    """Its name, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return signed


def content(bundle):
    with zipfile.ZipFile(bundle) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def again(files, name="new.zip", listed=False):
    """A new zip of `files`; `listed` makes its list of hashes agree."""
    if listed:
        own = {name: text for name, text in files.items() if name not in (SUMS, SIGNATURE)}
        sums = "".join(f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in own.items())
        files = own | {SUMS: sums.encode()}
    return write_zip(Path(name), *files.items())


def refused(path, key=None):
    """The message about a bundle that must not pass, which is one line."""
    with pytest.raises(MismatchError) as caught:
        check(path, read_public(key) if key else None)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def exit_of(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["grid", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_bundle_is_checked_in_an_empty_folder(bundle, keys, monkeypatch, capsys):
    assert exit_of(monkeypatch, "verify", "--bundle", bundle, "--key", keys / "own.pub") == 0
    files, signature, *cells, last = capsys.readouterr().out.splitlines()
    assert files == f"{len(content(bundle)) - 2} files, as in SHA256SUMS"
    assert signature.startswith("signed with the key SHA256:")
    shown = json.loads((ROOT / f"reports/metrics/{CELL}.json").read_text())["mIoU"]
    assert f"{CELL}: {100 * shown:.2f}%, as recorded" in cells
    assert last.startswith("not proven: that the networks give these numbers")
    assert not [*Path().iterdir()]


def test_a_bundle_has_the_evidence_and_neither_weights_nor_pictures(bundle):
    names = {Path(name) for name in content(bundle)}
    for name in (
        *("params.yaml", "dvc.yaml", "dvc.lock", "LICENSE", "README.md", "reports/code.json", "packages.cdx.json"),
        *("reports/tables/shapes.csv", f"reports/records/shapes/{CELL}.json", f"reports/cards/shapes/{CELL}.md"),
        *("reports/data/shapes/card.json", "requirements/run.txt", "croissant/shapes.json", "ro-crate-preview.html"),
    ):
        assert Path(name) in names
    texts = {".csv", ".html", ".json", ".lock", ".md", ".tex", ".txt", ".yaml", ".sig", ""}
    assert {name.suffix for name in names} <= texts
    assert Path("reports/index.html") not in names


def test_the_same_inputs_give_the_same_bytes(signed, keys, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path))
    write(tmp_path / "second.zip", keys / "own.pem", Places())
    assert (tmp_path / "second.zip").read_bytes() == signed.read_bytes()


def test_a_training_that_was_made_here_brings_the_hashes_of_its_spots(bundle):
    assert json.loads(content(bundle)[f"runs/{CELL}/run.json"]) == FACTS


def test_strangers_need_only_sha256sum_and_openssl(bundle, keys):
    with zipfile.ZipFile(bundle) as packed:
        packed.extractall()
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], check=False).returncode == 0
    command = ("openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-in", SUMS, "-sigfile", SIGNATURE, "-inkey")
    for name, code in (("own.pub", 0), ("other.pub", 1)):
        assert subprocess.run([*command, keys / name], check=False, capture_output=True).returncode == code


def test_the_formats_are_valid(bundle):
    import mlcroissant
    from rocrate.rocrate import ROCrate

    with zipfile.ZipFile(bundle) as packed:
        packed.extractall()
    crate = ROCrate(".")
    listed = {entity.id: entity["sha256"] for entity in crate.data_entities}
    others = {SUMS, SIGNATURE, "ro-crate-metadata.json", "ro-crate-preview.html"}
    assert listed == {
        name: hashlib.sha256(text).hexdigest() for name, text in content(bundle).items() if name not in others
    }
    dataset = mlcroissant.Dataset("croissant/shapes.json")  # raises for what is no Croissant
    assert [record["classes/name"] for record in dataset.records("classes")][:2] == ["background", "circle"]
    packages = json.loads(Path("packages.cdx.json").read_text())
    assert "pkg:pypi/torch@" in str(packages["components"])


@pytest.mark.skipif(
    not shutil.which("rocrate-validator"), reason="needs rocrate-validator, and a network for its context"
)
def test_the_validator_of_ro_crate_accepts_it(bundle):
    """It cannot be installed beside the pins: uv tool install roc-validator."""
    with zipfile.ZipFile(bundle) as packed:
        packed.extractall("crate")
    subprocess.run(["rocrate-validator", "-y", "validate", "--no-paging", "-l", "REQUIRED", "crate"], check=True)


@CHANGED
def test_one_changed_byte_of_any_file_is_named(bundle, record_property):
    packed, files = bundle.read_bytes(), content(bundle)
    for name, text in files.items():
        place = Random(name).randrange(len(text))
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        assert packed.count(text) == 1
        Path("new.zip").write_bytes(packed.replace(text, changed))
        assert name in refused(Path("new.zip"))
        message = (
            refused(again(files | {name: changed}), key=None) if name not in (SUMS, SIGNATURE) else f"{name} (changed)"
        )
        assert message == f"not as in {SUMS}: {name} (changed)" or name in (SUMS, SIGNATURE)
    assert len(files) >= 50
    record_property("tries", 2 * len(files))


@CHANGED
@pytest.mark.parametrize("name", ["reports/tables/shapes.csv", "params.yaml", "README.md"])
def test_a_missing_an_added_and_a_renamed_file_are_named(bundle, name):
    files = content(bundle)
    rest = {other: text for other, text in files.items() if other != name}
    assert refused(again(rest)) == f"not as in {SUMS}: {name} (missing)"
    assert refused(again(files | {"a/new.txt": b"new"})) == f"not as in {SUMS}: a/new.txt (not listed)"
    message = refused(again(rest | {"a": files[name]}))
    assert set(message.removeprefix(f"not as in {SUMS}: ").split(", ")) == {"a (not listed)", f"{name} (missing)"}


CSV, MD, TEX = (f"reports/tables/shapes.{kind}" for kind in ("csv", "md", "tex"))
RECORD, METRICS = f"reports/records/shapes/{CELL}.json", f"reports/metrics/{CELL}.json"


@CHANGED
@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        (CSV, lambda text, miou: text.replace(f",{miou},", ",0.9,", 1), MD),
        (CSV, lambda text, _: text.replace(",8,2,0,", ",8,2,,"), RECORD),
        (CSV, lambda text, _: text.replace("cell,", '"cell,'), CSV),
        (CSV, lambda text, _: text.replace("shapes_", "x" * 200_000, 1), "field larger than field limit"),
        (MD, lambda text, miou: text.replace(f"{100 * miou:.2f}%", "90.00%"), MD),
        (MD, lambda text, _: text + text.splitlines()[2] + "\n", MD),
        (TEX, lambda text, miou: text.replace(rf"{{{100 * miou:.2f}\%}}", r"{90.00\%}"), TEX),
        (TEX, lambda text, miou: text.replace(rf"& {100 * miou:.2f}\%", r"& 90.00\%"), TEX),
        (RECORD, lambda text, miou: text.replace(f'"mIoU": {miou}', f'"mIoU": {miou + 1e-6:.6f}'), CSV),
        (RECORD, lambda text, _: text.replace('"sha256": "', '"sha256": "0'), CSV),
        (RECORD, lambda text, _: text.replace(CELL, "another"), RECORD),
        (RECORD, lambda _, __: "{", RECORD),
        (METRICS, lambda text, miou: text.replace(f'"mIoU": {miou}', '"mIoU": 0.9'), METRICS),
    ],
)  # fmt: skip
def test_a_number_that_is_not_the_recorded_one_is_named_also_with_a_new_list(bundle, name, change, named):
    files = content(bundle)
    miou = json.loads(files[METRICS])["mIoU"]
    text = files[name].decode()
    changed = change(text, miou)
    assert changed != text
    check(again(files, listed=True), None)
    assert named in refused(again(files | {name: changed.encode()}, listed=True))


@pytest.fixture
def columned(tmp_path):
    """The places of a project with a further split and a column of its own."""
    folder = Folder(tmp_path)
    folder.raw["eval_splits"] = {"shapes": ["val", "train"]}
    folder.raw |= {"columns": ["dice", "pixel_accuracy", "boundary_iou"], "seeds": [0, 1]}
    folder.write_params()
    folder.measure(CELL, 0.5, 0.5)
    folder.evaluate(CELL, 0, 1)
    places = Places(tmp_path)
    record = json.loads(places.record("shapes", CELL).read_text())
    for own in record["seeds"].values():
        own["single_scale"]["measures"] = {"boundary_iou": 0.25}
    record["splits"] = {"train": {"images": 320, "data": folder.data, "seeds": record["seeds"]}}
    places.record("shapes", CELL).write_text(json.dumps(record))
    results, reasons = read_results("shapes", folder.params, places)
    rows = make_rows("shapes", results, reasons, folder.params, places)
    places.tables.mkdir()
    places.table("shapes").write_text(markdown(rows))
    places.sheet("shapes").write_text(sheet(rows))
    places.latex("shapes").write_text(latex("shapes", rows))
    return places


def test_columns_and_further_splits_are_checked_too(columned):
    assert check_tables(columned) == [f"{CELL}: 50.00% ± 0.00, as recorded"]


@CHANGED
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (RECORD, '"splits": {', '"versions": {}, "split": {', "damaged"),
        (RECORD, '"mIoU": 0.5,', '"mIoU": 0.51,', "mIoU is 0.5, expected 0.51"),
        (CSV, ",,0.5,", ",,0.51,", r"train\.mIoU(\\endcsname)? is"),
        (CSV, ",0.6285", ",0.6385", r"\.dice is 62\.86"),
        (MD, "| mIoU |", "| miou |", r"shapes\.md: damaged"),
        (TEX, "& mIoU &", "& miou &", r"shapes\.tex: damaged"),
        (TEX, r"dice\endcsname{62", r"dice\endcsname{63", r"\.dice is 63\.86"),
        ("params.yaml", '"columns": [', '"columns": 5, "grids": [', r"params\.yaml: damaged"),
        ("params.yaml", '"single_scale"', '"twice"', r"\.json: damaged"),
        ("params.yaml", '"protocols": {', '"protocols": {}, "others": {', r"\.json: damaged"),
    ],
)
def test_a_changed_column_or_split_is_named(columned, name, old, new, message):
    path = columned.root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises((DataError, MismatchError), match=message) as error:
        check_tables(columned)
    assert "\n" not in str(error.value)


@CHANGED
@pytest.mark.parametrize(
    "forged", [{"boundary_iou": "0.26"}, {"boundary_iou_std": "0.1"}, {"mIoU_single_scale": "0.6"}]
)
def test_a_column_that_is_not_that_of_the_record_is_named(columned, forged):
    row, _ = csv.DictReader(columned.sheet("shapes").read_text().splitlines())
    check_record(row, "shapes", columned)
    ((name, value),) = forged.items()
    with pytest.raises(MismatchError, match=rf"shapes\.csv: {name} is {value}, expected 0\.\d+"):
        check_record(row | forged, "shapes", columned)


@CHANGED
def test_a_number_without_its_record_is_named(bundle):
    files = content(bundle)
    del files[RECORD]
    assert RECORD in refused(again(files, listed=True))


@HOSTILE
def test_a_signature_is_by_the_key_that_is_demanded(bundle, keys):
    files = content(bundle)
    own = keys / "own.pub"
    (_, line, *_) = check(bundle, read_public(own))
    assert line.removeprefix("signed with the key SHA256:") in refused(
        again(files, listed=True) and again(files | {SIGNATURE: bytes(64)}), own
    )
    assert "is not by the key SHA256:" in refused(bundle, keys / "other.pub")
    assert "is not by the key" in refused(again(files | {SIGNATURE: files[SIGNATURE][:-1]}), own)
    assert refused(again(files, listed=True), own) == f"not signed: {SIGNATURE} is missing"
    other = again(files | {"a": b"b"}, listed=True)
    with zipfile.ZipFile(other, "a") as packed:
        packed.writestr(SIGNATURE, files[SIGNATURE])
    assert f"or not of this {SUMS}" in refused(other, own)
    assert check(again(files, listed=True), None)[1] == "not signed: anybody can have written it"


@HOSTILE
def test_what_is_no_key_is_refused(keys, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    commands = (
        ("genpkey", "-algorithm", "rsa", "-out", "x.pem"),
        ("pkey", "-in", "x.pem", "-pubout", "-out", "x.pub"),
    )
    locked = ("pkey", "-in", keys / "own.pem", "-aes256", "-passout", "pass:secret", "-out", "locked.pem")
    for command in (*commands, locked):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    for path in (Path("empty"), Path("x.pem"), Path("locked.pem"), keys / "own.pub"):
        with pytest.raises(ParamsError, match=r"^--key: .*: expected a private Ed25519 key in PEM without a password"):
            read_private(path)
    for path in (Path("empty"), Path("x.pub"), keys / "own.pem"):
        with pytest.raises(ParamsError, match=r"^--key: .*: expected the signer's public Ed25519 key"):
            read_public(path)


@HOSTILE
def test_a_bundle_that_is_cut_is_refused(bundle, record_property):
    packed = bundle.read_bytes()
    places = [0, 1, 30, *range(1000, len(packed), len(packed) // 20), len(packed) - 1]
    for place in places:
        Path("new.zip").write_bytes(packed[:place])
        assert refused(Path("new.zip")).startswith("broken or cut short")
    record_property("tries", len(places))


@HOSTILE
def test_any_change_of_the_zip_around_the_files_is_refused_or_changes_nothing(bundle, record_property):
    packed, random, lines = bundle.read_bytes(), Random(0), check(bundle, None)
    directory = packed.rindex(b"PK\x01\x02", 0, packed.index(b"PK\x01\x02") + 4)
    found = []
    for _ in range(30):
        place = random.randrange(directory, len(packed))
        Path("new.zip").write_bytes(packed[:place] + bytes([random.randrange(256)]) + packed[place + 1 :])
        try:
            found.append(check(Path("new.zip"), None))
        except MismatchError as error:
            found.append(str(error).splitlines())
    assert {len(said) for said in found if said != lines} == {1}
    record_property("tries", 30)


@HOSTILE
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../canary", b"dead")], "refused: '../canary' leaves the folder"),
        ([("a/../../canary", b"dead")], "refused: 'a/../../canary' leaves the folder"),
        ([("/tmp/canary", b"dead")], "refused: '/tmp/canary' leaves the folder"),
        ([("a", b"1"), ("a", b"2")], "refused: 'a' occurs twice, or as a file and as a folder"),
        ([("a", b"link", 0o120777)], "refused: 'a' is a link, expected only files and folders"),
        ([("a.txt", b"of somebody else")], "SHA256SUMS is missing, which `grid report --bundle` writes"),
        ([(SUMS, b"no list of hashes\n")], "not as in SHA256SUMS:  (missing)"),
        ([(SUMS, b"\xff\xfe")], "SHA256SUMS: damaged, or edited by hand (UnicodeDecodeError"),
        ([(SUMS, b"")], "no table in it shows a number"),
        ([], "holds no files in ."),
    ],
)  # fmt: skip
def test_another_zip_is_refused(entries, message, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    canary.write_bytes(b"alive")
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert message in refused(write_zip(Path("x.zip"), *entries))
    assert canary.read_bytes() == b"alive"


@HOSTILE
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.verify.bundle.check.MAX_BYTES", 1_000_000)
    assert "unpacks to more than" in refused(write_zip(Path("x.zip"), ("a", bytes(2_000_000))))
    assert MAX_BYTES == 1 << 28


@HOSTILE
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["verify", "--bundle", "no.zip"], 74, "no.zip: no such file or folder"),
        (["verify", "--bundle", "a.tar"], 78, "--bundle: got a.tar, expected a file whose name ends in .zip"),
        (["verify", "--bundle", "tar.zip"], 1, "tar.zip: broken or cut short (File is not a zip file)"),
        (["verify", "--key", "own.pub"], 78, "--bundle: got None, expected a file whose name ends in .zip"),
        (["verify", "--bundle", "a.zip", "--key", "no.pub"], 74, "no.pub: no such file or folder"),
        (["verify", "--bundle", "a.zip", "--fast"], 78, "--bundle: got cells, --fast or --training too: expected it alone, or with --key"),
        (["report", "--bundle", "a.rar"], 78, "--bundle: got a.rar, expected a file whose name ends in .zip"),
        (["report", "--key", "own.pem"], 78, "--bundle: got None, expected a file whose name ends in .zip"),
        (["report", "--bundle", "a.zip"], 78, "--bundle: found no commit to name. Run: git init && git add . && git commit"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_exit_code(words, code, message, keys, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(keys / "own.pub", "own.pub")
    shutil.copyfile(keys / "own.pem", "own.pem")
    write_tar(Path("tar.zip"), ("a", b"b"))
    assert exit_of(monkeypatch, *words) == code
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_a_number_that_does_not_hold_gets_no_bundle(here, tmp_path, monkeypatch):
    shutil.copytree(here, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    Path(MD).write_text(Path(MD).read_text().replace("%", "9%"))
    with pytest.raises(MismatchError, match="README"):
        write(Path("a.zip"), None, Places())
    assert not Path("a.zip").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"classes": [], "splits": {"val": 1}, "fingerprint": ""}'])
def test_a_damaged_data_card_names_the_stage(text, tmp_path):
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    card = Places(tmp_path).data_card("shapes") / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text(text)
    with pytest.raises(DataError, match=r"card\.json: damaged, .* Run: dvc repro -f prepare@shapes"):
        describe(tmp_path, datetime(2026, 1, 2), Places(tmp_path), signed=False)


def test_outside_of_git_and_without_the_packages_nothing_is_written(here, tmp_path, monkeypatch):
    shutil.copytree(here, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(ParamsError, match=r"^--bundle: found no commit to name\. Run: git init"):
        write(Path("a.zip"), None, Places())
    monkeypatch.setitem(sys.modules, "mlcroissant", None)
    monkeypatch.setattr("pipeline.verify.bundle.write.find_spec", lambda name: None if name == "mlcroissant" else name)
    with pytest.raises(ParamsError, match=r"^--bundle: the package mlcroissant is missing\. Run: pip install rocrate"):
        write(Path("a.zip"), None, Places())
    assert not Path("a.zip").exists()

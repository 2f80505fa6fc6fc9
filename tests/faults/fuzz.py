"""What the readers are fed: real files with something changed, and how to see that each ends well.

A reader may accept what it is given, or refuse it by ParamsError or DataError. Any other error, a call that takes
seconds, or memory that grows without bound is a bug.
"""

import copy
import hashlib
import io
import json
import signal
import tempfile
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from deeplab.checkpoint import load_checkpoint
from deeplab.counts import gather, read_counts, write_counts
from deeplab.decode import read_image, read_size
from deeplab.errors import DataError, SettingsError
from deeplab.segmenter import read_about
from deeplab.store import Store
from pipeline.data.formats.base import read_ids
from pipeline.data.formats.folder import read_classes
from pipeline.data.formats.masks import read_colors, read_labels
from pipeline.data.unpack import unpack
from pipeline.results.readme import fill
from pipeline.results.records import read_results
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.training.curves import read_curves
from tests.archives import write_tar, write_zip
from tests.records import CELL, Folder
from tests.tiny import write_store, write_weights

ROOT = Path(__file__).parents[2]
SECONDS = 20  # of CPU, so that a busy machine does not count: the four readers of pictures take up to 7 for the largest
HANGING = 200  # seconds by the clock, for a call that waits

# --- Values and bytes that go wrong

odd_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.binary(max_size=4),
        st.sampled_from(["1e-2", "no", "010", "${x}", "../..", "a; touch b", "\0", "\ud800", "日本", "x" * 3000]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def edited_value(draw, value):
    """`value`, nested mappings and lists, with up to three changes anywhere in it."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        inner, depth = value, draw(st.integers(0, 5))
        for _ in range(depth):
            if not isinstance(inner, (dict, list)) or not inner:
                break
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            key, last = draw(st.sampled_from(keys)), inner
            inner = inner[key]
            if not isinstance(inner, (dict, list)) or not draw(st.booleans()):
                change(draw, last, key)
                break
    return value


def change(draw, holder, key):
    """Replace, drop, rename or double what `holder` has at `key`."""
    kind = draw(st.sampled_from(["replace", "replace", "drop", "rename"]))
    if kind == "drop":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[draw(st.text(max_size=8))] = holder.pop(key)
    else:
        holder[key] = draw(odd_values)


@st.composite
def edited_bytes(draw, content):
    """`content` with up to six changes: bytes replaced, put in, cut out, said twice, or its end lost."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["replace", "insert", "cut", "twice", "end", "zero", "flip", "numbers"]))
        if kind == "replace":
            new = draw(st.binary(min_size=1, max_size=8))
            content[at : at + len(new)] = new
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "cut":
            del content[at : at + length]
        elif kind == "twice":
            content[at:at] = content[at : at + length]
        elif kind == "zero":
            content[at : at + length] = bytes(len(content[at : at + length]))
        elif kind == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "numbers":
            content[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"9999"]))
        elif kind == "end":
            del content[at:]
    return bytes(content)


def as_text(value):
    """JSON is YAML; what JSON cannot say stands there as Python shows it."""
    return json.dumps(value, default=repr).encode("utf-8", "surrogatepass")


# --- The readers: name -> (what they are fed, what they do with it in a folder)


def try_params(content, folder):
    (folder / "params.yaml").write_bytes(content)
    load_params(folder / "params.yaml")


def try_manifest(content, folder):
    for name in ("images.bin", "masks.bin", "image_files.txt"):
        if not (folder / name).exists():
            (folder / name).symlink_to(KEPT / "store" / name)
    (folder / "manifest.json").write_bytes(content)
    store = Store(folder)
    for name in {record.split for record in store.records}:
        split = store.split(name)
        for index in range(len(split)):
            assert split.image(index).shape == (*split.mask(index).shape, 3)


def try_picture(content, folder):
    path = folder / "picture"
    path.write_bytes(content)
    for read in (read_image, read_size, read_labels, lambda path: read_colors(path, {(0, 0, 0): 0, (9, 9, 9): 1})):
        with suppress(DataError):
            read(path)


def try_archive(content, folder):
    path = folder / ("a.zip" if content[:2] == b"PK" else "a.tar")
    path.write_bytes(content)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        before = sorted(folder.rglob("*"))
        try:
            unpack(path, Path(out) / "in", ["a"], 50_000)
        finally:
            written = [file for file in folder.rglob("*") if file not in before]
            assert all(file.is_relative_to(Path(out) / "in") and not file.is_symlink() for file in written)
            assert sum(file.stat().st_size for file in written if file.is_file()) < 100_000


def try_record(content, folder):
    places = Places(folder)
    places.records("shapes").mkdir(parents=True, exist_ok=True)
    places.record("shapes", CELL).write_bytes(content)
    with patch("pipeline.results.records.current_code", lambda *_: STATE["code"]):  # it looks at the code each time
        read_results("shapes", STATE["params"], places)


def try_history(content, folder):
    (folder / "history.csv").write_bytes(content)
    read_curves(folder / "history.csv", 0)


def try_counts(content, folder):
    (folder / "cell.npz").write_bytes(content)
    for counts in read_counts(folder / "cell.npz").values():
        if max(len(counts.images), len(counts.classes)) < 1000:
            assert counts.matrix.sum() == counts.pixels.sum()
            counts.totals()


def try_readme(content, _):
    table = b"| mIoU |\n| 7 |\n"
    new = fill(content, "voc", table, Path("README.md"))
    assert fill(new, "voc", table, Path("README.md")) == new
    begin, end = b"<!-- results:voc -->", b"<!-- /results:voc -->"
    if begin not in content and end not in content:  # then it is added at the end
        assert new.startswith(content.rstrip())
        return
    for one, other in (
        (content.partition(begin)[0], new.partition(begin)[0]),
        (content.partition(end)[2], new.partition(end)[2]),
    ):
        assert one == other


def try_lists(content, folder):
    (folder / "list.txt").write_bytes(content)
    for read in (read_classes, read_ids, read_yaml):
        with suppress(DataError, SettingsError):
            read(folder / "list.txt")


def try_weights(content, folder):
    (folder / "seed0.safetensors").write_bytes(content)
    read_about(folder / "seed0.safetensors")


def try_checkpoint(content, folder):
    for old in folder.glob("step-*"):
        old.unlink()
    known = STATE["checkpoint"]
    (folder / f"step-{1:09d}-{hashlib.sha256(known).hexdigest()[:16]}.pt").write_bytes(content)
    if content != known:
        try:
            load_checkpoint(folder)
        except DataError:
            return
        raise AssertionError("taken for whole")


KEPT: Path  # a folder with the real files, made once
STATE: dict = {}


def readers(folder):
    """Make the real files in `folder`; name -> (strategy, function)."""
    global KEPT
    KEPT = folder
    text = (ROOT / "params.yaml").read_bytes()
    small = read_yaml(ROOT / "params.yaml")
    small["grid"] = dict(list(small["grid"].items())[:2])  # the rest is alike, and takes time
    manifest = json.loads((write_store(folder / "store", {"train": 2, "val": 1}) / "manifest.json").read_bytes())
    place = Folder(folder / "records")
    STATE.update(params=place.params, code=place.fingerprint(CELL)["code"])
    place.measure(CELL, 0.5)
    place.train(CELL)
    record = json.loads((place.path / f"reports/records/shapes/{CELL}.json").read_bytes())
    history = (place.path / f"runs/{CELL}/history.csv").read_bytes()
    write_counts(
        folder / "a.npz", {(0, "a"): gather([np.array([[5, 1], [2, 3]])] * 3, ["x", "y", "z"], ["sky", "cat"])}
    )
    page = b"# T\r\n<!-- results:voc -->\nold\n<!-- /results:voc -->\n\\1 <!-- results:b -->\n<!-- /results:b -->\n"
    weights = write_weights(folder / "seed0.safetensors").read_bytes()[:20_000]
    STATE["checkpoint"] = a_checkpoint()
    return {
        "params": (edited_value(small).map(as_text) | edited_bytes(text), try_params),
        "manifest": (edited_value(manifest).map(as_text) | edited_bytes(as_text(manifest)), try_manifest),
        "pictures": (st.sampled_from(pictures()).flatmap(edited_bytes), try_picture),
        "archives": (st.sampled_from(archives(folder)).flatmap(edited_bytes), try_archive),
        "record": (edited_value(record).map(as_text) | edited_bytes(as_text(record)), try_record),
        "history": (edited_bytes(history) | st.binary(max_size=200), try_history),
        "counts": (edited_bytes((folder / "a.npz").read_bytes()) | odd_counts(), try_counts),
        "README": (edited_bytes(page) | st.binary(max_size=100), try_readme),
        "lists": (edited_bytes(b"0 sky 1 2 3\n1 cat 4 5 6\n") | st.binary(max_size=100), try_lists),
        "weights": (edited_bytes(weights), try_weights),
        "checkpoint": (edited_bytes(STATE["checkpoint"]) | st.binary(max_size=100), try_checkpoint),
    }


def pictures():
    """A small picture in each of the formats, as masks and images come."""
    grey = Image.fromarray((np.arange(600).reshape(20, 30) % 7).astype(np.uint8))
    palette = grey.copy()
    palette.putpalette(list(range(256)) * 3)
    made = [
        (grey, "PNG"),
        (palette, "PNG"),
        (grey.convert("RGB"), "JPEG"),
        (grey, "BMP"),
        (grey, "TIFF"),
        (grey, "WEBP"),
    ]
    contents = []
    for picture, kind in (*made, (grey, "GIF"), (palette, "TIFF")):
        file = io.BytesIO()
        picture.save(file, kind)
        contents.append(file.getvalue())
    return contents


def archives(folder):
    """The same two files in each kind of archive."""
    entries = (("a/1.txt", b"one" * 50), ("a/b/2.txt", bytes(3000)), ("README", b"x"))
    made = [
        write_tar(folder / "a.tar", *entries),
        write_tar(folder / "a.tgz", *entries, mode="w:gz"),
        write_zip(folder / "a.zip", *entries),
    ]
    return [path.read_bytes() for path in made]


@st.composite
def odd_counts(draw):
    """An archive of arrays under the right names, of any type, length and value."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name in ("images", "classes", *(f"0/a/{column}" for column in ("image", "truth", "predicted", "pixels"))):
            inner = io.BytesIO()
            kind = draw(st.sampled_from(["<i4", "|u1", "<i8", "<f8", "<U3", "|b1"]))
            np.save(inner, np.array(draw(st.lists(st.integers(0, 120), max_size=4))).astype(kind))
            packed.writestr(f"{name}.npy", inner.getvalue())
    return file.getvalue()


def a_checkpoint():
    import torch

    file = io.BytesIO()
    torch.save({"step": 3, "weights": torch.ones(4), "losses": {"values": [1.0]}}, file)
    return file.getvalue()


# --- Running them


class TooLongError(Exception):
    """A call did not end in time."""


@contextmanager
def in_time():
    def stop(*_):
        raise TooLongError

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, HANGING)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def feed(strategy, read, folder, examples, number=None):
    """Feed `read` so many examples, always the same ones where `number` is None; how many it was."""
    count = 0

    @settings(
        max_examples=examples, derandomize=number is None, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(strategy)
    def call(content):
        nonlocal count
        count += 1
        with suppress(DataError, SettingsError), in_time():
            read(content, folder)

    (call if number is None else seed(number)(call))()
    return count


def feed_for(seconds, strategy, read, folder):
    """Feed `read` other examples for so many seconds; how many it was."""
    until, count, number = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        count += feed(strategy, read, folder, 25, number)
        number += 1
    return count

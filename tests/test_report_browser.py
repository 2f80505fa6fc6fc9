"""The page in a real browser, where there is one: `apt-get install chromium`."""

import re
import shutil
import subprocess

import pytest

from pipeline.settings.places import Places
from pipeline.stages import report
from tests.fake_grid import FakeGrid

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images].filter(image => !image.complete || !image.naturalWidth).length;
  const outer = document.documentElement;
  const cut = [...document.querySelectorAll(".row > .scroll")].filter(each => each.scrollWidth > each.clientWidth).length;
  document.body.innerHTML = `broken=${images} wide=${outer.scrollWidth - outer.clientWidth} cut=${cut} ` +
    `ink=${getComputedStyle(document.body).color}`;
});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of all cells but one, with a script that reports what a reader would see."""
    if not CHROMIUM:
        pytest.skip("needs Chromium, which nothing else here does")
    grid = FakeGrid(tmp_path_factory.mktemp("grid")).fill("voc_resnet50_os8")
    report.run(Places(grid.path))
    out = Places(grid.path).page
    out.write_text(out.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("width", "dark", "ink"), [(1280, False, "27, 31, 36"), (1000, False, "27, 31, 36"), (500, True, "227, 231, 235")]
)
def test_the_page_fits_a_screen_shows_its_pictures_and_follows_the_scheme(page, tmp_path, width, dark, ink):
    flags = [*QUIET.split(), f"--user-data-dir={tmp_path}", f"--window-size={width},900"]
    flags += ["--blink-settings=preferredColorScheme=0"] * dark
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = dict(re.findall(r"(\w+)=(\d+|rgb\([^)]*\))", done.stdout[-300:]))
    assert found == {"broken": "0", "wide": "0", "cut": "0", "ink": f"rgb({ink})"}

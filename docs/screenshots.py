"""Take the pictures of docs/ again: `python docs/screenshots.py` after `make demo mlflow.db`. Needs Chromium.

The page of results, MLflow's list and charts, and one prediction of the demo; each picture replaces the one in docs/.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pipeline.settings.places import Places
from pipeline.tracking.client import pages
from pipeline.tracking.ui import HOST, answers

DOCS = Path(__file__).parent
PORT = 5128
CELL, IMAGE = "shapes_resnet18_os8", "4_*.jpg"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=120000"]


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        sys.exit("error: chromium not found, so docs/*.png stay as they are. Run: apt-get install chromium")
    places = Places()
    figures = sorted(places.figures(CELL).glob(IMAGE))
    if not (places.page.exists() and figures):
        sys.exit(f"error: {places.page} or {places.figures(CELL)}/{IMAGE}: not found. Run: make demo")
    with Image.open(figures[0]) as picture:
        picture.resize((1000, round(1000 * picture.height / picture.width))).save(DOCS / "demo.png")
    shoot(chromium, places.page.resolve().as_uri(), "page.png", (1280, 1900))
    server = subprocess.Popen([sys.executable, "-m", "pipeline", "ui", "--port", str(PORT)])
    try:
        while not answers(PORT):
            if server.poll() is not None:
                sys.exit("error: MLflow's server ended")
            time.sleep(1)
        address = f"http://{HOST}:{PORT}/{pages()['deeplabv3-shapes']}"
        # 430 pixels more, which MLflow's Assistant takes.
        shoot(chromium, address, "mlflow-runs.png", (1640, 620), cut=430)
        shoot(chromium, address.replace("=TABLE", "=CHART"), "mlflow-curves.png", (1640, 900), cut=430)
    finally:
        server.terminate()
        server.wait()


def shoot(chromium: str, address: str, name: str, size: tuple[int, int], cut: int = 0) -> None:
    """Write docs/`name`, without the right `cut` pixels of a window of `size`."""
    out = DOCS / name
    with TemporaryDirectory() as profile:
        words = [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", f"--screenshot={out}", address]
        subprocess.run([chromium, *FLAGS, *words], check=True, timeout=120, stderr=subprocess.DEVNULL)
    with Image.open(out) as picture:
        small = picture.crop((0, 0, size[0] - cut, size[1])).convert("P", palette=Image.Palette.ADAPTIVE)
    small.save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main()

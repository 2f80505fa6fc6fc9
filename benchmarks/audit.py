"""Ask what is known about the pinned packages, and write docs/dependency-audit.md: the answer, and what it means here.

A package that the service gave no answer for is reported as not audited: pip-audit itself says "No known
vulnerabilities found" then. Exits with 1 when a package was not audited, or has a finding that dependency-audit.toml
does not explain.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.version import Version

from pipeline.errors import run_command

PIP_AUDIT = "pip-audit==2.10.1"
COMMAND = ["uv", "tool", "run", PIP_AUDIT, "--require-hashes", "--disable-pip", "--progress-spinner", "off"]

Answer = list[dict[str, Any]]  # of pip-audit, a package each


def run(requirements: Sequence[Path], known: Path, out: Path) -> int:
    """Write `out`; the exit code."""
    findings = tomllib.loads(known.read_text(encoding="utf-8"))["finding"]
    pins = read_pins(requirements)
    answer = ask(requirements)
    audited = [package for package in answer if "vulns" in package]
    explained = {finding["id"] for finding in findings}
    unexplained = [
        (package["name"], package["version"], found["id"], " ".join(found["fix_versions"]) or "none")
        for package in audited
        for found in package["vulns"]
        if not explained & {found["id"], *found.get("aliases", [])}
    ]
    lines = [
        "# Audit of the dependencies",
        "",
        f"Written by `make audit` on {datetime.now(UTC):%Y-%m-%d} with {PIP_AUDIT}, over the {len(answer)} packages of "
        f"requirements/.",
        "",
        f"**Audited: {len(audited)} of {len(answer)}.** {unanswered(len(answer) - len(audited))}",
        "",
        "## Found and not yet explained",
        "",
        *(rows(("package", "version", "finding", "fixed in"), unexplained) or ["Nothing among those audited."]),
        "",
        "## Known, and what it means here",
        "",
        "From published advisories, by hand, in dependency-audit.toml; it is not complete.",
        "",
        *rows(
            ("finding", "package", "pinned", "last affected", "touches the pin", "what it means"),
            [
                (each["id"], each["package"], ", ".join(pins[each["package"]]), each["last"] or "every version",
                 "yes" if touches(each["last"], pins[each["package"]]) else "no", each["means"])
                for each in findings
            ],
        ),
    ]  # fmt: skip
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {len(audited)} of {len(answer)} audited, {len(unexplained)} not explained")
    return 1 if unexplained or len(audited) < len(answer) else 0


def ask(requirements: Sequence[Path]) -> Answer:
    """What pip-audit says of each package; one that could not be audited has a `skip_reason` and no `vulns`."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        named = [word for path in requirements for word in ("--requirement", str(path))]
        words = [*COMMAND, *named, "--format", "json", "--output", str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if not file.exists():
            raise OSError(f"pip-audit gave no answer: {done.stderr.strip().splitlines()[-1:]}")
        found: Answer = json.loads(file.read_text(encoding="utf-8"))["dependencies"]
        return found


def read_pins(requirements: Sequence[Path]) -> dict[str, list[str]]:
    """Package -> its pinned versions; several where they differ by platform."""
    pins: dict[str, list[str]] = {}
    for line in (line for path in requirements for line in path.read_text(encoding="utf-8").splitlines()):
        name, equal, rest = line.partition("==")
        if equal and not line.startswith((" ", "#")):
            pins.setdefault(name, []).append(rest.split()[0])
    return pins


def touches(last: str, versions: list[str]) -> bool:
    """Whether one of `versions` is affected."""
    return not last or any(Version(version) <= Version(last) for version in versions)


def unanswered(count: int) -> str:
    """What the rest is worth."""
    if not count:
        return "The service answered for each of them."
    return f"For {count} the service gave no answer from where this ran, so nothing is known of them from it."


def rows(head: tuple[str, ...], body: list[tuple[str, ...]]) -> list[str]:
    """A table in Markdown; nothing without `body`."""
    if not body:
        return []
    return [f"| {' | '.join(cells)} |" for cells in (head, ("--",) * len(head), *body)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--requirements", type=Path, nargs="+", default=sorted(Path("requirements").glob("*.txt")))
    parser.add_argument("--known", type=Path, default=Path("docs/dependency-audit.toml"))
    parser.add_argument("--out", type=Path, default=Path("docs/dependency-audit.md"))
    arguments = parser.parse_args()
    sys.exit(run(arguments.requirements, arguments.known, arguments.out))


if __name__ == "__main__":
    run_command(main)

"""What the documentation names exists: links, files, modules, verbs of `grid`, targets of make."""

import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

from pipeline.cli import grid

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/camvid/README.md")]
PAGES += sorted(ROOT.glob("docs/*.md"))
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^ {4,}.*\n)+", re.M)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "pipeline|deeplab|docs|tests|benchmarks|examples"


def prose_of(page):
    """The text of a page without its blocks of code."""
    return INDENTED.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))


def spans_of(page):
    """The inline code of a page, each on one line."""
    return [" ".join(span.replace("\\|", "|").split()) for span in SPAN.findall(prose_of(page))]


def code_of(page):
    """All code of a page by lines: inline code and blocks, the latter without comments."""
    text = page.read_text(encoding="utf-8")
    blocks = "".join([*FENCE.findall(text), *INDENTED.findall(FENCE.sub("", text))])
    return spans_of(page) + [re.sub(r"(^|\s)# .*", "", line) for line in blocks.splitlines()]


def anchors_of(page):
    """The anchors of the headings of a page, as GitHub forms them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title).lower()).replace(" ", "-") for title in titles}


def exists(name):
    """Whether Python finds the module or attribute `name`."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def unknown_words(line):
    """The verbs and options of `grid` in a line of code that its parser does not know."""
    for verb, rest in re.findall(r"(?:^|[;&|] *)grid ([a-z]+)\b([^;&]*)", line):
        command = grid.commands.get(verb)
        known = {word for param in command.params for word in param.opts} if command else set()
        yield from [] if command else [f"grid {verb}"]
        options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest) if command else []
        yield from (f"grid {verb} {option}" for option in options if option not in known | {"--help"})


per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@per_page
def test_a_link_leads_to_a_file_and_its_anchor(page):
    dead = []
    for link in LINK.findall(SPAN.sub("", prose_of(page))):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not re.match(r"[a-z]+:", link) and (not target.exists() or (anchor and anchor not in anchors_of(target))):
            dead.append(link)
    assert not dead


@per_page
def test_a_path_in_code_exists(page):
    paths = [span for span in spans_of(page) if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]*", span)]
    assert not [path for path in paths if not (ROOT / path).exists()]


@per_page
def test_a_module_that_is_started_exists(page):
    names = [name for line in code_of(page) for name in re.findall(r"\bpython\S* -m ([\w.]+)", line)]
    assert not [name for name in names if not is_module(name)]


@per_page
def test_a_dotted_name_of_the_code_exists(page):
    names = {name for line in code_of(page) for name in re.findall(r"(?<![\w./-])(?:pipeline|deeplab)(?:\.\w+)+", line)}
    assert not [name for name in sorted(names) if not exists(name)]


@per_page
def test_a_command_is_one_that_grid_knows(page):
    assert not [word for line in code_of(page) for word in unknown_words(line)]


@per_page
def test_a_target_of_make_exists(page):
    targets = re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = [
        name for line in code_of(page) for name in re.findall(r"(?:^|[;&] *)make(?: [A-Z]+=\S*)* ([a-z][\w-]*)", line)
    ]
    assert not set(named) - set(targets)

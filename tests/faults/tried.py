"""Rows of docs/reliability.md that several test files fill together."""

import pytest


def row(area, fault, injected, promised="one clear line that names the file, exit code 65"):
    return pytest.mark.fault(area, fault, injected, promised)


IMAGES = row(
    "input", "bad images", "cut, emptied, flipped, renamed, zero-filled, of absurd size, missing, no file at all"
)
MASKS = row("input", "bad masks", "cut, of colours, of another depth or size, saved as JPEG, a label that there is not")
LISTS = row(
    "input", "bad lists, folders and class tables", "ids twice, more words, no text, no partner, no such folder"
)
ARCHIVES = row("input", "bad archives", "cut at every part, flipped, no archive, the wrong one, lying about sizes")
DOWNLOADS = row(
    "input",
    "a server that sends something else",
    "half a file, a login page, wrong bytes, no length, another version, silence",
    "never under the archive's name; one line with each address's answer, exit code 65; what came is kept",
)
SETTINGS = row(
    "input",
    "mistakes in params.yaml",
    "one edit each of the real file, and files that are no settings",
    "one line with file, key, value and what to write instead, exit code 78, before anything runs",
)
CHECKPOINTS = row(
    "input",
    "bad checkpoints",
    "a bit flipped, cut, emptied, half written, of another kind, all of them damaged",
    "the one before is used; with none left one line, and never a silent start from nothing",
)
WEIGHTS = row(
    "input", "bad weights files", "cut, no weights, of another network, settings, data or code, saying nothing"
)
README = row(
    "input",
    "a README that cannot be filled",
    "no markers, doubled, in the wrong order, nested, edited by hand; CRLF, BOM, no UTF-8",
    "one line that says what to add, exit code 65, the file untouched; or filled with every other byte as it was",
)
RESULTS = row(
    "input",
    "damaged results",
    "manifest, record, counts, metrics, run.json, history, plots and cards, cut or edited by hand",
    "one line with the file and the command that makes it again, exit code 65",
)
USE = row(
    "input",
    "bad photos, videos and arguments of predict",
    "no image, cut, turned, no video, a video cut short, a file in place of a folder, tiles with gaps",
    "one line each, exit code 65 or 78; the other images are segmented",
)
SMALL_DISK = row(
    "disk",
    "a disk that is too small",
    "free space as statvfs tells it, RLIMIT_FSIZE while writing",
    "exit code 74, one line, before the work where the size is known; nothing half written",
)
DVC = row(
    "disk",
    "DVC's cache is full",
    "a tmpfs of 300 kB as cache, under the runner",
    "the stage counts as failed although DVC may exit with 0; its result stays, and the command that keeps it is told",
)

# Security: the rest of its tests stand in this folder.
ESCAPES = row(
    "security",
    "an archive that leaves its folder",
    "`..`, absolute names, backslashes, links, devices, pipes, setuid, a name twice, the nested links of CVE-2025-4517",
    "refused with the name of the member, or without what makes it dangerous; nothing outside is touched",
)
BOMBS = row(
    "security",
    "an archive that unpacks without end",
    "bombs, sizes that lie, 200,000 members, a reader without end",
    "refused with the name of the member, at the latest at the limit of params.yaml",
)
PAGE = row(
    "security",
    "a class or a cell whose name is HTML",
    "`<script>`, attributes, templates and random text as names on the page of results",
    "shown as text; the page runs nothing and loads nothing",
)

"""The rows of the page of tested networks, parts and priors, and whether the tests that they name exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tested_networks.md"

# An id is a file, a test (in a class, maybe), and the id of a row of its parameters: `tests/x.py::test_it[conv1d]`.
_ID = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)(?:\[([^\]`]+)\])?`")


def rows_of(heading: str) -> list[list[str]]:
    """The cells of each row of the table below a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    section = re.split(rf"^## {re.escape(heading)}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return cells[2:]


@cache
def _functions(path: Path) -> frozenset[str]:
    """The tests in a file, with their class where they are in one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for part in tree.body:
        if isinstance(part, ast.ClassDef):
            names |= {f"{part.name}::{node.name}" for node in part.body if isinstance(node, ast.FunctionDef)}
    return frozenset(names)


@cache
def _with_helpers(path: Path) -> str:
    """The text of a file of tests, and of the modules beside the tests that it imports."""
    text = path.read_text(encoding="utf-8")
    helpers = [ROOT / f"{name.replace('.', '/')}.py" for name in re.findall(r"^from (tests[\w.]*) import", text, re.M)]
    return "\n".join([text, *(helper.read_text(encoding="utf-8") for helper in helpers if helper.is_file())])


def check_rows(heading: str, *, least: int) -> None:
    """Assert that there are so many different rows below a heading, and that each names tests that exist.

    The id of a parameter has to stand in the file of the test, or one that it imports from the tests, in quotes or as a
    name (of a class or a function).

    Args:
        heading: The heading, without ``##``.
        least: Least number of rows.
    """
    rows = rows_of(heading)
    assert len(rows) >= least, f"{heading}: {len(rows)} rows, at least {least} are wanted"
    assert len({row[0] for row in rows}) == len(rows), f"{heading}: two rows have the same name"
    for row in rows:
        assert len(row) == 3, f"{heading}: {row} has {len(row)} cells of 3"
        assert row[1], f"{heading}: {row[0]} does not say what is compared"
        ids = _ID.findall(row[2])
        assert ids, f"{heading}: {row[0]} names no test (`tests/file.py::test_name[id]`)"
        for file, test, parameter in ids:
            path = ROOT / file
            assert path.is_file(), f"{heading}: {file} does not exist"
            assert test in _functions(path), f"{heading}: {file} has no test {test}"
            text = _with_helpers(path)
            wanted = rf"[\"']{re.escape(parameter)}[\"']|\b{re.escape(parameter)}\b"
            assert not parameter or re.search(wanted, text), f"{heading}: {file} has no row {parameter!r}"

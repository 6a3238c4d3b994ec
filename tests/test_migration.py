"""The names of 0.1 that docs/migration.md lists work, and warn of the new ones."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
SECTION = PAGE.read_text(encoding="utf-8").split("## Renamed classes and functions")[1].split("##")[0]
RENAMED = re.findall(r"^\| `(bayeshnet[\w.]+)` \| `(bayeshnet[\w.]+)` \|$", SECTION, flags=re.MULTILINE)


def found(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_table_is_read():
    assert len(RENAMED) == SECTION.count("\n| `") >= 8


@pytest.mark.parametrize(("old", "new"), RENAMED)
def test_a_renamed_object(old, new):
    with pytest.warns(FutureWarning, match=rf"{re.escape(old)}: is renamed .*; use {re.escape(new)}\."):
        value = found(old)
    assert value is found(new)

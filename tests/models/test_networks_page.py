"""The page on networks, and the rows of the table of tested ones."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.models.networks_brought import ROWS
from tests.tested_rows import check_rows, rows_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_runs():
    text = (DOCS / "networks.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    assert names["pred"].mean.shape == (20,)
    assert names["shuffled"].mean.shape == (40,)
    assert bool((names["new"][:, 2] == 2).all())  # the number of a category that is not known
    assert "inputs: 2 (x, lengths), required by forward" in repr(names["model"]) or names["model"].columns is not None
    assert names["by_key"](names["x"]).shape == (20,)
    assert names["by_function"](names["x"]).shape == (20,)
    assert names["steps"](torch.randn(3, 5, 2)).shape[0] == 3


def test_every_row_names_a_test():
    check_rows("Networks", least=22)
    named = " ".join(row[2] for row in rows_of("Networks"))
    assert all(f"[{key}]" in named for key in ROWS)

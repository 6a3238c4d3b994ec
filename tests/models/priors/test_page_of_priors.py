"""The how-to page, and the rows of the table."""

from __future__ import annotations

import re
from pathlib import Path

from tests.tested_rows import check_rows

ROOT = Path(__file__).parents[3]


def test_the_page_runs():
    text = (ROOT / "docs" / "priors.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    assert names["scale"].shape == (100,)
    assert names["pred"].draws.shape == (100, 60)
    assert names["spread"].shape == (60,)
    assert abs(names["found"].achieved["std"] - 1.0) < 0.1


def test_the_rows_name_tests_that_exist():
    check_rows("Priors", least=12)

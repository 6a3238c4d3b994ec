"""The code of docs/units.md runs, in order, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bayeshnet.models import units_check

PAGE = (Path(__file__).parents[2] / "docs" / "units.md").read_text(encoding="utf-8")


def test_the_page_runs(capsys):
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 4
    for code in blocks:
        exec(code.replace("steps=300", "steps=20"), names)
    printed = capsys.readouterr().out
    assert "standardize: inputs by column: loc" in printed
    assert re.search(r"x: column [01] has mean (19|20)\d\d", printed)
    assert "draws, 1 layer, 256 reference rows" in printed
    assert 200_000 < float(names["pred"].mean.mean()) < 300_000
    assert names["one"].probs.shape == (1, 10)


def test_what_it_says_of_warnings_is_what_is_done():
    text = PAGE.replace("\n", " ")
    assert f"above {units_check._LARGE:g}" in text
    assert f"above {units_check._SMALL:g}" in text
    assert f"{units_check._DRAWS} draws from the prior at {units_check._ROWS} rows" in text

"""The pages on predictions and deployment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["predictions", "deployment"])
def test_the_page_runs(page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    if page == "predictions":
        assert torch.allclose(names["summary"].mean, names["pred"].mean, atol=1e-5)
        assert names["ensemble"].draws.shape == (5, 60)
        assert names["slope"].shape == (60, 1)
        assert names["found"].mean.shape == (60,)
    else:
        assert names["functions"].shape == (20, 40)
        assert names["average"].shape == (40,)

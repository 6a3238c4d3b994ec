"""The page on likelihoods."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from bayeshnet import likelihoods

PAGE = (Path(__file__).parents[3] / "docs" / "likelihoods.md").read_text(encoding="utf-8")


def test_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    torch.manual_seed(0)
    names = {}
    for i, block in enumerate(blocks):
        exec(block, names)
        if i == 0:
            assert names["conditional"].mean.shape == (20, 80)
        if i == 2:
            torch.testing.assert_close(names["pred"].aleatoric, names["errors"])
    assert len(repr(names["with_latent"])) > 0


def test_the_table_has_every_likelihood():
    rows = re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE)
    classes = {name for name in likelihoods.__all__ if name[0].isupper()}
    assert classes - set(rows) <= {"Likelihood", "ParametricLikelihood", "FromFunction"}

"""The page on plain Pyro."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bayeshnet.guides.base import Guide

PAGE = (Path(__file__).parents[2] / "docs" / "plain_pyro.md").read_text(encoding="utf-8")


def test_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    torch.manual_seed(0)
    names = {}
    exec(blocks[0], names)
    assert names["samples"].shape == (100, 40, 1)
    (decaying,) = [group["params"] for group in names["guide"].param_groups(0.01) if group.get("decay")]
    before = [param.detach().clone() for param in decaying]
    exec(blocks[1], names)
    assert not any(torch.equal(old, param) for old, param in zip(before, decaying, strict=True))


@pytest.mark.parametrize(
    "name", ["begin_fit", "end_fit", "cancel_fit", "param_groups", "clip_norm", "move_to", "get_posterior"]
)
def test_the_names_on_it_exist(name):
    assert name in PAGE
    assert hasattr(Guide, name)

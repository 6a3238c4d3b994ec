"""The page on networks in larger programs: its code runs, and its table of shapes is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pyro
import torch
from torch import nn

from bayeshnet import RandomModule

PAGE = (Path(__file__).parents[2] / "docs" / "larger_models.md").read_text(encoding="utf-8")


def test_its_code_runs():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    assert names["predictions"]["mean"].samples.shape == (100, 60)
    assert names["predictions"]["obs"].mean.shape == (60,)
    assert names["mean"].shape == (60,)
    assert names["obs"].mean.shape == (3, 60)
    assert len(names["history"]) == 5


def test_its_table_of_shapes():
    rows = re.findall(r"^\| .*?`(\[.*?\])` \| .*?`(\[.*?\])`.*? \| `(\[.*?\])`", PAGE, flags=re.MULTILINE)
    sizes = {"P": 4, "K": 2, "out": 3}

    def shape(text):
        return [sizes.get(part, part) for part in re.findall(r"\w+", text)]

    for drawn, given, found in rows:
        batch, x, expected = ([int(size) for size in shape(text)] for text in (drawn, given, found))
        event_dim = 2 if len(batch) == 1 else 1
        f = RandomModule(nn.Linear(x[-1], 3), event_dim=event_dim)
        with _plates(batch):
            g = f.sample()
        assert list(g.batch_shape) == batch
        assert list(g(torch.zeros(x)).shape) == expected
    assert len(rows) == 7


class _plates:
    """Plates of these sizes, the last one at -1; none for sizes of 1."""

    def __init__(self, batch):
        places = range(-len(batch), 0)
        self._plates = [pyro.plate(f"p{dim}", n, dim=dim) for dim, n in zip(places, batch, strict=True) if n > 1]

    def __enter__(self):
        for plate in self._plates:
            plate.__enter__()

    def __exit__(self, *error):
        for plate in reversed(self._plates):
            plate.__exit__(*error)

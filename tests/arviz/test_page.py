"""The page on ArviZ: its code runs, plots included, with either version."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "arviz.md"


@pytest.fixture(scope="module")
def names():
    plt.close("all")  # those of other tests in this process
    found = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(block, found)
    yield found
    plt.close("all")


# ArviZ 0.23 calls what pandas 3 and matplotlib 3.11 have deprecated; and k-hats of some rows are for the page's reader.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning"),
]


def test_the_network_beats_the_straight_line(names):
    assert list(names["table"].index) == ["network", "straight line"]
    assert len(names["summary"]) == 5


def test_the_table_has_every_group(names):
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", PAGE.read_text(), flags=re.MULTILINE))))
    idata = names["idata"]
    there = set(idata.groups()) if callable(idata.groups) else {name.strip("/") for name in idata.groups} - {""}
    assert listed == there | {"sample_stats"}


def test_the_plots_are_drawn(names):
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert len(figures) == 4
    assert all(any(axes.has_data() for axes in figure.axes) for figure in figures)


def test_a_plain_model_has_its_plate(names):
    assert names["plain"]["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    assert "AutoNormal" in names["plain"].attrs["draws_of"]

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def no_settings_changed_and_nothing_shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every plot leaves matplotlib's settings as they were and does not call show; figures are closed at the end."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a plot called plt.show")

    monkeypatch.setattr(plt, "show", refuse)
    before = mpl.rcParams.copy()
    yield
    assert mpl.rcParams == before
    plt.close("all")

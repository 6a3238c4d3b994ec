"""A fit that is gone on with after its process has died ends like one that was never interrupted."""

from __future__ import annotations

import warnings

import pytest

from bayeshnet.errors import ConvergenceWarning
from tests.training.resumed_fits import CASES, assert_same, killed_until_done, result


@pytest.fixture(autouse=True)
def _quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
        yield


@pytest.mark.parametrize("name", CASES)
def test_two_kills(name, tmp_path):
    whole = result(name, None)
    # The first process writes after 3 and 6 steps; the second goes on from there, with other random numbers.
    again, kills = killed_until_done(name, tmp_path / "fit", [8, 5])
    assert kills == 2
    assert again["resumed_from"] == 9
    assert_same(whole, again)

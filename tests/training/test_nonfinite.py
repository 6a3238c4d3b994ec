"""The cause of a loss that is not finite."""

from __future__ import annotations

import math

import pytest

from bayeshnet import fit
from bayeshnet.errors import NonFiniteLossError
from tests.evaluation.test_wrong_inputs import X, Y, problem


def test_rows_that_are_nan_are_named():
    """Before: "Look for NaN in the data of this batch"."""
    model, guide = problem()
    bad = Y.clone()
    bad[[2, 5]] = math.nan
    match = r"'obs'.* The batch holds NaN in data\[1\] \(2 of 8 entries\) in rows 2, 5: remove or impute"
    with pytest.raises(NonFiniteLossError, match=match):
        fit(model, guide, (X, bad), steps=1, progress=False)

"""Fans of a weight tensor."""

from __future__ import annotations

import pytest

from bayeshnet.errors import ArgumentError
from bayeshnet.fans import fan_in_and_out


@pytest.mark.parametrize(
    ("shape", "transposed", "expected"),
    [
        ([], False, (1, 1)),
        ([7], False, (1, 1)),
        ([10, 5], False, (5, 10)),
        ([10, 5], True, (10, 5)),
        ([8, 3, 5], False, (15, 40)),
        ([8, 3, 5, 2], False, (30, 80)),
        ([3, 8, 5, 2], True, (30, 80)),
    ],
)
def test_fans(shape, transposed, expected):
    assert fan_in_and_out(shape, transposed=transposed) == expected


def test_fans_of_an_empty_tensor():
    with pytest.raises(ArgumentError, match=r"shape: is \[3, 0\], with an entry below 1; pass the shape of"):
        fan_in_and_out([3, 0])

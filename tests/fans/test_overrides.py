"""Numbers in place of the defaults."""

from __future__ import annotations

import math

import pytest

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.fans import Target, counted_variance, read_number, read_overrides, read_variance
from bayeshnet.hnets.hyperfan_targets import describe_targets
from tests.fans.described import Described


def test_names_may_be_none_in_a_dict():
    net = Described(([2, 2], "weight", 1), ([3], None, -1))
    assert read_overrides("w_var", {None: 0.5}, describe_targets(net.param_shapes, net)) == [None, 0.5]


def test_numbers_come_back_as_floats():
    assert isinstance(read_number("rho_mean", 3), float)
    assert isinstance(read_variance("eps", 0), float)
    assert counted_variance("cond_var", "nothing", 0) == 1.0


@pytest.mark.parametrize(
    ("read", "value", "error", "message"),
    [
        (read_number, "low", ArgumentTypeError, "x: is 'low', a str; pass a number."),
        (read_number, math.nan, ArgumentError, "x: is nan; pass a finite number."),
        (read_variance, -0.5, ArgumentError, "x: is -0.5; pass a variance, 0 or more."),
        (lambda name, value: counted_variance(name, value, 3), None, ArgumentTypeError, "x: is None"),
    ],
)
def test_numbers_that_are_refused(read, value, error, message):
    with pytest.raises(error) as caught:
        read("x", value)
    assert message in str(caught.value)


def test_an_int_is_no_list():
    with pytest.raises(ArgumentTypeError, match="w_val: is an int; pass a list with one number or None per target"):
        read_overrides("w_val", 3, [Target((2,), "bias")])

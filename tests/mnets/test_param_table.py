from __future__ import annotations

import pytest

from bayeshnet.errors import ArgumentError
from bayeshnet.mnets.fans import fan_in_and_out
from bayeshnet.mnets.param_table import ParamRecord, num_weights, param_names, records_from_lists, split_sizes


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
    with pytest.raises(ArgumentError, match=r"shape: \[3, 0\] has an entry below 1"):
        fan_in_and_out([3, 0])


def test_counts():
    assert num_weights([[2, 3], [3], []]) == 10
    assert split_sizes([[2, 3], [3], []]) == [6, 3, 1]


def test_names_are_unique():
    records = [
        ParamRecord((2,), "weight", 1),
        ParamRecord((2,), "weight", 1),
        ParamRecord((2,)),
        ParamRecord((2,), "bias", 1, extra={"dotted_name": "a.b"}),
    ]
    assert param_names(records) == ["1.weight", "1.weight_2", "param_2", "a.b"]


def test_records_from_lists():
    meta = [{"name": "weight", "index": -1, "layer": 2, "info": "x"}, {"name": "embedding", "index": 0, "layer": 0}]
    first, second = records_from_lists([[2, 3], [4]], meta, external_refs=[0], conditional_refs=[1])
    assert first == ParamRecord((2, 3), "weight", 2, internal=False, extra={"info": "x"})
    assert second == ParamRecord((4,), "embedding", 0, conditional=True)
    assert second.with_extra(info="y").extra == {"info": "y"}

from __future__ import annotations

from bayeshnet.mnets.param_table import ParamRecord, num_weights, param_names, records_from_lists, split_sizes


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

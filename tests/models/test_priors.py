from __future__ import annotations

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models import priors

LIKE = torch.zeros(())
WEIGHT = ParamRecord((6, 4), "weight", 0)
BIAS = ParamRecord((6,), "bias", 0)


def moments(prior: priors.Normal, name: str, record: ParamRecord):
    fn = prior.distribution(name, record, like=LIKE)
    assert fn.batch_shape == ()
    assert tuple(fn.event_shape) == record.shape
    return fn.mean, fn.stddev


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (WEIGHT, 0.5),
        (BIAS, 1.0),
        (ParamRecord((8, 4, 3, 3), "weight", 1), 1 / 6),
        (ParamRecord((4, 8, 3, 3), "weight", 1, extra={"transposed": True}), 1 / 6),
        (ParamRecord((), None), 1.0),
        (ParamRecord((10, 3), "embedding", 0), 1.0),
    ],
)
def test_fan_in(record, expected):
    mean, std = moments(priors.Normal(scale="fan_in"), "p", record)
    torch.testing.assert_close(std, torch.full(record.shape, expected))
    torch.testing.assert_close(mean, torch.zeros(record.shape))


def test_norm_scales_have_mean_one():
    mean, _ = moments(priors.Normal(scale=0.3), "bn.weight", ParamRecord((3,), "bn_scale", 2))
    torch.testing.assert_close(mean, torch.ones(3))
    mean, _ = moments(priors.Normal(scale=0.3, loc=0.0), "bn.weight", ParamRecord((3,), "bn_scale", 2))
    torch.testing.assert_close(mean, torch.zeros(3))


def test_per_parameter_exact_names_before_patterns():
    prior = priors.Normal(scale={"*": 2.0, "0.weight": "fan_in", "*.bias": torch.full((6,), 3.0)}, loc={"*.bias": 1.0})
    assert moments(prior, "0.weight", WEIGHT)[1].unique().item() == 0.5
    assert moments(prior, "2.weight", WEIGHT)[1].unique().item() == 2.0
    # patterns in their order: "*" comes first
    assert moments(prior, "0.bias", BIAS)[1].unique().item() == 2.0
    assert moments(prior, "0.bias", BIAS)[0].unique().item() == 1.0
    assert moments(prior, "0.weight", WEIGHT)[0].unique().item() == 0.0


def test_dtype_follows_the_network():
    fn = priors.Normal(scale="fan_in").distribution("w", WEIGHT, like=torch.zeros((), dtype=torch.float64))
    assert fn.sample().dtype == torch.float64


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, float("nan"), float("inf"), "fan_out", torch.tensor([1.0, -1.0]), {"a": -1}]
)
def test_bad_scales(scale):
    with pytest.raises(ArgumentError, match="scale"):
        priors.Normal(scale=scale)


def test_bad_types_and_missing_names():
    with pytest.raises(ArgumentTypeError, match="scale: is a list"):
        priors.Normal(scale=[1.0])
    with pytest.raises(ArgumentTypeError, match="loc: is a str"):
        priors.Normal(loc="zero")
    with pytest.raises(ArgumentError, match="no entry for the parameter '0.bias'"):
        priors.Normal(scale={"*.weight": 1.0}).distribution("0.bias", BIAS, like=LIKE)
    with pytest.raises(ArgumentError, match=r"'0.bias' has shape \(5,\)"):
        priors.Normal(scale={"*": torch.ones(5)}).distribution("0.bias", BIAS, like=LIKE)

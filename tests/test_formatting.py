from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from bayeshnet.formatting import array, number, span, value


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.tensor(0.1), "0.1"),
        (0.09999999403953552, "0.1"),
        (np.float32(0.3), "0.3"),
        (torch.tensor([6.0]), "6"),
        (123456789, "123456789"),
        (1e-12, "1e-12"),
        (float("inf"), "inf"),
        (True, "True"),
    ],
)
def test_number(x, text):
    assert number(x) == text


def test_number_digits():
    assert number(2 / 3, digits=2) == "0.67"


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.zeros(500, 12), "f32[500,12]"),
        (torch.zeros(2, dtype=torch.bfloat16), "bf16[2]"),
        (torch.zeros(2, dtype=torch.bool), "bool[2]"),
        (torch.zeros(2, dtype=torch.uint8), "u8[2]"),
        (torch.zeros(0, 1, dtype=torch.complex64), "c64[0,1]"),
        (np.zeros((2, 3)), "f64[2,3]"),
        (torch.tensor(0.1), "0.1"),
        (torch.zeros((), device="meta"), "f32[]"),
    ],
)
def test_array(x, text):
    assert array(x) == text


def test_span():
    assert span(torch.tensor([0.25, -1.0, 3.14159], requires_grad=True)) == "-1..3.14"
    assert span(torch.full((4,), 0.1)) == "0.1"
    assert span(torch.zeros(0)) == "empty"


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (dist.Gamma(6.0, 6.0), "Gamma(6, 6)"),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), "Normal(f32[3], f32[3]).to_event(1)"),
        (dist.LogNormal(0.0, 0.1), "LogNormal(0, 0.1)"),
        (dist.HalfCauchy(2.0), "HalfCauchy(2)"),
        (dist.Bernoulli(0.2), "Bernoulli(0.2)"),
        (dist.Categorical(logits=torch.zeros(3)), "Categorical(f32[3])"),
        (
            dist.TransformedDistribution(dist.Normal(0.0, 1.0), [torch.distributions.transforms.ExpTransform()]),
            "TransformedDistribution(Normal(0, 1), [ExpTransform()])",
        ),
    ],
)
def test_distributions(x, text):
    assert value(x) == text


def test_a_distribution_that_was_asked_for_its_logits_prints_as_before():
    fn = dist.Bernoulli(0.2)
    assert fn.logits < 0
    assert value(fn) == "Bernoulli(0.2)"


def test_value():
    assert value({"a": (torch.zeros(3),), "b": [None, True, "c"]}) == "{'a': (f32[3],), 'b': [None, True, 'c']}"
    assert value(torch.nn.ReLU()) == "ReLU()"

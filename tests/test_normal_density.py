"""The standard normal density."""

from __future__ import annotations

import torch

from bayeshnet.normal_density import LOG_2PI, log_standard_normal


def test_it_is_that_of_torch() -> None:
    noise = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    torch.testing.assert_close(log_standard_normal(noise), expected)
    assert log_standard_normal(noise[..., :0]).abs().max() == 0
    assert float(torch.tensor(2.0 * torch.pi, dtype=torch.float64).log()) == LOG_2PI

"""Which layer met which input. Before: torch's own words, which name neither."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets import batched_forward


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class ByHand(nn.Module):
    """Uses its weight outside of any layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1))

    def forward(self, x):
        if x.shape[1] == 7:
            raise ValueError("seven is not to my taste")
        return x @ self.weight


def conv():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 1))


CASES = [
    (conv, torch.zeros(2, 1, 6, 6), ArgumentError, r"shape \[2, 1, 6, 6\]; .*Conv2d '0' takes 3 channels .*, not 1"),
    (conv, torch.zeros(2, 6, 6, 3), ArgumentError, "Conv2d '0' takes 3 channels in the second dimension, not 6"),
    (conv, torch.zeros(6, 6), ArgumentError, r"Conv2d '0' takes a batch \[B, 3, ...\] of 4 dimensions, not 2"),
    (conv, torch.zeros(2, 3, 2, 2), ArgumentError, r"no smaller than its kernel \[3, 3\], not \[2, 2\]"),
    (conv, torch.zeros(2, 3, 7, 7), ArgumentError, r"Linear '2' then gets a tensor \[2, 50\], and takes 32 columns"),
    (
        conv,
        torch.zeros(2, 3, 6, 6, dtype=torch.uint8),
        ArgumentTypeError,
        "torch.uint8, .* Conv2d '0' takes torch.float32",
    ),
    (Recurrent, torch.zeros(2, 5, 2), ArgumentError, "LSTM 'cell' takes 3 columns, not 2"),
    (Recurrent, torch.zeros(2, 5, 3, dtype=torch.long), ArgumentTypeError, "LSTM 'cell' takes torch.float32"),
    (lambda: nn.LayerNorm(3), torch.zeros(2, 5), ArgumentError, r"LayerNorm takes a last part of shape \[3\]"),
    (lambda: nn.BatchNorm1d(3).eval(), torch.zeros(2, 5), ArgumentError, "BatchNorm1d takes 3 channels, not 5"),
    (
        ByHand,
        torch.zeros(2, 3, dtype=torch.long),
        ArgumentTypeError,
        "torch.int64, the network's weights have torch.float",
    ),
    (ByHand, torch.zeros(2, 7), ValueError, "seven is not to my taste"),
    (ByHand, torch.zeros(2, 5), RuntimeError, "cannot be multiplied"),  # no layer to be named
    (ByHand, {"inputs": torch.zeros(2, 3)}, ArgumentTypeError, r"a dict with the keys \['inputs'\].* takes \(x\)"),
    (ByHand, (), ArgumentTypeError, r"a tuple of 0, .*missing a required argument"),
]


@pytest.mark.parametrize(("make", "x", "error", "match"), CASES)
def test_causes(make, x, error, match):
    net = make()
    weights = torch.zeros(4, sum(p.numel() for p in net.parameters()))
    with pytest.raises(error, match=match) as caught:
        batched_forward(net, weights, x)
    ours = error in (ArgumentError, ArgumentTypeError)
    assert (type(caught.value) in (ArgumentError, ArgumentTypeError)) == ours
    assert (caught.value.__cause__ is not None) == ours

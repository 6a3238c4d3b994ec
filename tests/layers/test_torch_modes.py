from __future__ import annotations

import contextlib

import pytest
import torch

from bayeshnet.layers.torch_modes import ordinary_rules_apply, own_gradients_apply, under_functorch

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("mode", "ordinary", "own"),
    [
        (contextlib.nullcontext, True, True),
        (torch.no_grad, True, False),
        (torch.inference_mode, True, False),
        (lambda: torch.autocast("cpu", dtype=torch.bfloat16), False, False),
    ],
    ids=["none", "no_grad", "inference_mode", "autocast"],
)
def test_modes(mode, ordinary, own):
    with mode():
        assert ordinary_rules_apply(CPU) is ordinary
        assert own_gradients_apply(CPU) is own
        assert not under_functorch()


def test_transforms():
    seen = []

    def look(x):
        seen.append((under_functorch(), ordinary_rules_apply(CPU), own_gradients_apply(CPU)))
        return x

    torch.func.vmap(look)(torch.zeros(2))
    assert seen == [(True, False, False)]

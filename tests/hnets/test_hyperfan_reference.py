"""Hyperfan against hypnettorch 0.0.4, where it is right. Skipped where it is not installed."""

# pyright: reportOptionalIterable=false

from __future__ import annotations

import importlib

import pytest
import torch

from bayeshnet.hnets import HMLP
from bayeshnet.mnets import MLP
from tests.hnets.reference import quiet, reference


@pytest.mark.parametrize("method", ["in", "out"])
@pytest.mark.parametrize("use_xavier", [False, True])
@pytest.mark.parametrize("config", [{}, {"use_bias": False}, {"layers": ()}])
def test_same_draws_as_the_reference(method, use_xavier, config):
    """The same seed gives the same parameters: no batch norm, no harmonic means, no convolution (fan-out of a bias)."""
    # Layers that grow: a bias of variance 0 would use up random numbers there, and not here.
    shapes = [[6, 5], [6], [7, 6], [7], [2, 7]]
    kwargs = {"uncond_in_size": 3, "cond_in_size": 4, "num_cond_embs": 2, "layers": (8, 7), **config}
    theirs = quiet(reference("mlp_hnet", "HMLP"), shapes, **kwargs)
    ours = HMLP(shapes, **kwargs)
    for hnet in (theirs, ours):
        torch.manual_seed(3)
        quiet(hnet.apply_hyperfan_init, method, use_xavier, uncond_var=0.5, cond_var=3.0)
    for one, two in zip(theirs.unconditional_params, ours.unconditional_params, strict=True):
        torch.testing.assert_close(two, one)


@pytest.mark.parametrize("method", ["in", "out"])
def test_same_draws_as_the_reference_with_a_main_network(method):
    with_net, their_mlp = reference("mlp_hnet", "HMLP"), importlib.import_module("hypnettorch.mnets.mlp").MLP
    net = quiet(their_mlp, n_in=5, n_out=3, hidden_layers=(6,), use_batch_norm=True, no_weights=True)
    own = MLP(5, 3, (6,), use_batch_norm=True, no_weights=True, verbose=False)
    assert own.param_shapes == net.param_shapes
    kwargs = {"uncond_in_size": 3, "cond_in_size": 0, "layers": (8,)}
    theirs, ours = quiet(with_net, net.param_shapes, **kwargs), HMLP(own.param_shapes, **kwargs)
    overrides = {
        "w_val": {"bn_shift": 0.1, "weight": 2.0},  # those of weights have to be complete there
        "w_var": {"bn_shift": 0.2, "weight": 0.3},
        "b_val": {"weight": 1.0},
        "b_var": {"bn_scale": 0.4, "weight": 0.5},
    }
    for given in ({}, overrides):
        for hnet, mnet in ((theirs, net), (ours, own)):
            torch.manual_seed(3)
            quiet(hnet.apply_hyperfan_init, method, mnet=mnet, **given)
        for one, two in zip(theirs.unconditional_params, ours.unconditional_params, strict=True):
            torch.testing.assert_close(two, one)

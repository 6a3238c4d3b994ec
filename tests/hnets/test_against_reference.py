"""Differential tests against hypnettorch 0.0.4, where it is right. Skipped where it is not installed."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import itertools

import pytest
import torch

from bayeshnet.hnets import HMLP, HPerturbWrapper

from .reference import assert_same, assert_same_lists, quiet, reference, share_weights

SHAPES = [[3, 2], [3], [4, 1, 2]]

CONFIGS = [
    {},
    {"layers": ()},
    {"layers": (5,), "use_bias": False},
    {"layers": (5, 4), "activation_fn": torch.tanh},
    {"layers": (5, 4), "activation_fn": None},
    {"layers": (5, 4), "use_batch_norm": True},
    {"layers": (5, 4), "dropout_rate": 0.5},
    {"layers": (5, 4), "no_uncond_weights": True, "no_cond_weights": True},
]


def pair(config, uncond_in_size, cond_in_size, num_cond_embs=1):
    """The same network twice, with the same weights."""
    kwargs = {"uncond_in_size": uncond_in_size, "cond_in_size": cond_in_size, "num_cond_embs": num_cond_embs, **config}
    theirs = quiet(reference("mlp_hnet", "HMLP"), SHAPES, **kwargs)
    ours = HMLP(SHAPES, **kwargs)
    share_weights(theirs, ours)
    return theirs, ours


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(config) or "default")
@pytest.mark.parametrize(("uncond", "cond"), [(2, 0), (0, 3), (2, 3)])
def test_hmlp(config, uncond, cond):
    theirs, ours = pair(config, uncond, cond, 3 if cond else 1)
    assert_same_lists(theirs, ours)
    assert (ours.has_fc_out, ours.has_linear_out) == (theirs.has_fc_out, theirs.has_linear_out)
    weights = [torch.randn(shape) for shape in theirs.param_shapes] if theirs.hyper_shapes_learned else None
    z = torch.randn(4, uncond) if uncond else None
    conditions = [{"cond_id": 1}, {"cond_id": [2, 0, 1, 1]}, {"cond_input": torch.randn(4, cond)}] if cond else [{}]
    for training, condition in itertools.product([True, False], conditions):
        if training and ("dropout_rate" in config or (condition.get("cond_id") == 1 and not uncond)):
            continue  # random, or batch norm of a single sample
        theirs.train(training)
        ours.train(training)
        for fmt in ("flattened", "sequential", "squeezed"):
            out = [
                hnet(z, **condition, weights=None if weights is None else list(weights), ret_format=fmt)
                for hnet in (theirs, ours)
            ]
            assert_same(*out)


def test_hmlp_gradients():
    theirs, ours = pair({"layers": (5, 4)}, 2, 3, 3)
    z, direction = torch.randn(4, 2), torch.randn(4, 17)
    for hnet in (theirs, ours):
        (hnet(z, cond_id=[0, 1, 0, 0], ret_format="flattened") * direction).sum().backward()
    for one, two in zip(theirs.internal_params, ours.internal_params, strict=True):
        if one.grad is None or two.grad is None:
            assert not any(p.grad is not None and p.grad.any() for p in (one, two))
        else:
            assert_same(one.grad, two.grad)


@pytest.mark.parametrize("keys", [("uncond_weights",), ("cond_weights",), ("uncond_weights", "cond_weights")])
def test_hmlp_with_weights_as_a_dict(keys):
    theirs, ours = pair({"layers": (5,)}, 2, 3, 2)
    weights = {
        "uncond_weights": [torch.randn(shape) for shape in theirs.unconditional_param_shapes],
        "cond_weights": [torch.randn(shape) for shape in theirs.conditional_param_shapes],
    }
    z = torch.randn(2, 2)
    assert_same(*[hnet(z, cond_id=[1, 0], weights={k: list(weights[k]) for k in keys}) for hnet in (theirs, ours)])


def test_helpers():
    theirs, ours = pair({"layers": (5,)}, 2, 3, 2)
    deltas = [torch.randn(shape) for shape in theirs.unconditional_param_shapes]
    assert_same(*[hnet.add_to_uncond_params(deltas) for hnet in (theirs, ours)])
    assert_same(*[hnet.get_cond_in_emb(1).detach() for hnet in (theirs, ours)])
    one, two = theirs.get_output_weight_mask([1, 4]), ours.get_output_weight_mask([1, 4])
    for a, b in zip(one, two, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a.bool(), b)
    out = [hnet(torch.ones(2, 2), cond_id=0, ret_format="sequential") for hnet in (theirs, ours)]
    assert_same(*[h.convert_out_format(o, "sequential", "flattened") for h, o in zip((theirs, ours), out, strict=True)])


@pytest.mark.parametrize("sigma", [0.02, 0.7])
@pytest.mark.parametrize("cond", [0, 3])
def test_perturbation_wrapper(sigma, cond):
    theirs, ours = pair({"layers": (5,)}, 4, cond, 2 if cond else 1)
    theirs = quiet(reference("hnet_perturbation_wrapper", "HPerturbWrapper"), theirs, 4, sigma)
    ours = HPerturbWrapper(ours, 4, sigma)
    assert_same_lists(theirs, ours)
    z = torch.randn(4, 17)
    for condition in [{"cond_id": 1}, {"cond_id": [0, 1, 1, 0]}] if cond else [{}]:
        for fmt in ("flattened", "sequential", "squeezed"):
            assert_same(*[hnet(z, **condition, ret_format=fmt) for hnet in (theirs, ours)])


def test_perturbation_wrapper_with_handlers():
    theirs, ours = pair({"layers": (5,)}, 4, 0)

    def input_handler(uncond_input=None, cond_input=None, cond_id=None):
        return uncond_input[:, :4], cond_input, cond_id

    def output_handler(hnet_out_int, uncond_input=None, cond_input=None, cond_id=None):
        return hnet_out_int + uncond_input[:, 4:]

    z, handlers = torch.randn(3, 21), {"input_handler": input_handler, "output_handler": output_handler}
    theirs = quiet(reference("hnet_perturbation_wrapper", "HPerturbWrapper"), theirs, **handlers)
    assert_same(theirs(z), HPerturbWrapper(ours, **handlers)(z))

"""Differential tests against hypnettorch 0.0.4, skipped where it is not installed."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import warnings

import pytest
import torch
from torch import nn

from bayeshnet.mnets import MLP

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:hypnettorch")

FLAGS = (
    "use_bias",
    "use_batch_norm",
    "use_context_mod",
    "context_mod_inputs",
    "no_last_layer_context_mod",
    "context_mod_post_activation",
)


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("hypnettorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("hypnettorch.mnets.mlp").MLP
        except ImportError as error:
            pytest.skip(f"hypnettorch cannot be imported: {error}")


def build(cls, **options):
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        return cls(n_in=3, n_out=2, hidden_layers=(5, 4), **options)


@pytest.mark.parametrize("gain", [{}, {"context_mod_gain_offset": True}, {"context_mod_gain_softplus": True}])
@pytest.mark.parametrize("activation_fn", [nn.ReLU(), None])
def test_same_parameters_and_outputs(reference, gain, activation_fn):
    x = torch.randn(7, 3)
    for flags in itertools.product([False, True], repeat=len(FLAGS)):
        options = {**dict(zip(FLAGS, flags, strict=True)), **gain, "activation_fn": activation_fn}
        options["distill_bn_stats"] = options["use_batch_norm"]
        theirs, ours = build(reference, **options), build(MLP, **options)
        assert ours.param_shapes == theirs.param_shapes
        for ours_meta, theirs_meta in zip(ours.param_shapes_meta, theirs.param_shapes_meta, strict=True):
            assert ours_meta["name"] == theirs_meta["name"]
            assert ours_meta["index"] == theirs_meta["index"]
        # There the numbers of two layers may coincide, where there is either batch norm or a late modulation.
        if options["use_batch_norm"] == options["use_context_mod"] or not any(flags[1:]):
            assert [m["layer"] for m in ours.param_shapes_meta] == [m["layer"] for m in theirs.param_shapes_meta]
        torch.testing.assert_close(list(ours.internal_params), list(theirs.internal_params), rtol=0, atol=0)
        weights = [torch.randn(shape) for shape in ours.param_shapes]
        for training, given in itertools.product([True, False], [None, weights]):
            ours.train(training)
            theirs.train(training)
            torch.testing.assert_close(ours(x, weights=given), theirs(x, weights=given), rtol=0, atol=1e-6)
        assert ours.hyper_shapes_distilled == theirs.hyper_shapes_distilled
        if options["use_batch_norm"]:
            torch.testing.assert_close(ours.distillation_targets(), theirs.distillation_targets())


@pytest.mark.parametrize("no_weights", [False, True])
@pytest.mark.parametrize("mod_no_weights", [False, True])
def test_same_external_parameters(reference, no_weights, mod_no_weights):
    options = {"use_context_mod": True, "no_weights": no_weights, "context_mod_no_weights": mod_no_weights}
    theirs, ours = build(reference, **options), build(MLP, **options)
    for name in ("param_shapes", "hyper_shapes_learned", "hyper_shapes_learned_ref"):
        assert getattr(ours, name) == (getattr(theirs, name) or None)
    assert ours.num_params == theirs.num_params
    assert ours.num_internal_params == theirs.num_internal_params
    mods = [torch.randn(shape) for shape in ours.param_shapes[:6]]
    rest = [torch.randn(shape) for shape in ours.param_shapes[6:]]
    x = torch.randn(7, 3)
    for given in ({"mod_weights": mods, "internal_weights": rest}, mods + rest):
        torch.testing.assert_close(ours(x, weights=given), theirs(x, weights=given), rtol=0, atol=1e-6)


def test_same_output_function_and_masks(reference):
    options = {"out_fn": torch.sigmoid}
    theirs, ours = build(reference, **options), build(MLP, **options)
    x = torch.randn(7, 3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
    assert (ours.has_linear_out, ours.has_fc_out, ours.mask_fc_out) == (
        theirs.has_linear_out,
        theirs.has_fc_out,
        theirs.mask_fc_out,
    )
    masks = zip(ours.get_output_weight_mask(out_inds=[1]), theirs.get_output_weight_mask(out_inds=[1]), strict=True)
    for mask, expected in masks:
        assert (mask is None and expected is None) or torch.equal(mask, expected.bool())

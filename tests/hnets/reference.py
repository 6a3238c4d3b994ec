"""hypnettorch 0.0.4 beside our classes: the same network twice, with the same weights, and what has to agree."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import warnings

import pytest
import torch

from bayeshnet import hnets

LISTS = [
    "param_shapes",
    "param_shapes_meta",
    "target_shapes",
    "num_outputs",
    "num_known_conds",
    "num_params",
    "num_internal_params",
    "unconditional_param_shapes",
    "unconditional_param_shapes_ref",
    "conditional_param_shapes",
    "conditional_param_shapes_ref",
    "unconditional_params_ref",
    "has_bias",
    "mask_fc_out",
    "hyper_shapes_distilled",
]
# There it is [] where nothing is in the list, here None.
LISTS_OR_NONE = ["hyper_shapes_learned", "hyper_shapes_learned_ref", "internal_params_ref"]

MODULES = {
    "HMLP": "mlp_hnet",
    "ChunkedHMLP": "chunked_mlp_hnet",
    "StructuredHMLP": "structured_mlp_hnet",
    "HContainer": "hnet_container",
    "HPerturbWrapper": "hnet_perturbation_wrapper",
}


def quiet(make, *args, **kwargs):
    """Call something that prints and warns."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def reference(module, name):
    pytest.importorskip("hypnettorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(importlib.import_module(f"hypnettorch.hnets.{module}"), name)
        except ImportError as error:
            pytest.skip(f"hypnettorch: {error}")


class Theirs:
    """The reference's classes under the names that ours have."""

    def __getattr__(self, name):
        return functools.partial(quiet, reference(MODULES[name], name))


def share_weights(theirs, ours):
    assert [p.shape for p in ours.internal_params or []] == [p.shape for p in theirs.internal_params or []]
    if ours.internal_params is not None:
        ours.overwrite_internal_params([p.detach() for p in theirs.internal_params])


def networks(theirs):
    """A network of the reference and all inside it, which ``train`` and ``double`` do not reach there."""
    inner = [*getattr(theirs, "_hnets", ()), *(h for h in [getattr(theirs, "_hnet", None)] if h is not None)]
    return [theirs, *(hnet for part in inner for hnet in networks(part))]


def twins(build, mode="eval"):
    """``build(library)`` with the reference's classes and with ours, in double precision, with the same weights."""
    theirs, ours = build(Theirs()), build(hnets)
    for hnet in networks(theirs):
        hnet.double().train(mode == "train")
    ours.double().train(mode == "train")
    share_weights(theirs, ours)
    return theirs, ours


def assert_same_lists(theirs, ours, skip=()):
    for name in LISTS:
        if name not in skip:
            assert getattr(ours, name) == getattr(theirs, name), name
    for name in LISTS_OR_NONE:
        assert getattr(ours, name) == (getattr(theirs, name) or None), name
    for name in ("unconditional_params", "conditional_params", "layer_weight_tensors", "layer_bias_vectors"):
        one, two = getattr(theirs, name), getattr(ours, name)
        assert [p.shape for p in two or []] == [p.shape for p in one or []], name


def assert_same(theirs, ours):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)

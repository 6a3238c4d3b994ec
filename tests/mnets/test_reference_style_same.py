"""Classes in the reference's style have the same lists, outputs, masks and starts on both base classes."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.errors import UsageError
from tests.mnets.reference_cases import (
    HYPER,
    HYPER_LISTS,
    HYPER_TENSORS,
    INPUTS,
    LISTS,
    MAIN,
    TENSORS,
    all_weights,
    external_weights,
    make,
    shapes,
)


@pytest.fixture(params=[*MAIN, *HYPER])
def case(request):
    return {**MAIN, **HYPER}[request.param]


@pytest.fixture
def twins(case):
    """The same class body on both libraries, with the same weights."""
    pytest.importorskip("hypnettorch")
    theirs, ours = make("hypnettorch", *case), make("bayeshnet", *case)
    if ours.internal_params is not None:
        ours.overwrite_internal_params([param.detach() for param in theirs.internal_params])
    return theirs, ours


def test_same_lists(twins):
    theirs, ours = twins
    hyper = hasattr(ours, "target_shapes")
    for name in LISTS + HYPER_LISTS * hyper:
        try:
            expected = getattr(theirs, name)
        except NotImplementedError:  # no meta data: here they are made, with the name None
            assert name == "param_shapes_meta"
            assert [entry["name"] for entry in ours.param_shapes_meta] == [None] * len(ours.param_shapes)
            continue
        assert getattr(ours, name) == expected, name
    for name in TENSORS + HYPER_TENSORS * hyper:
        # None rather than [] where there are no conditional parameters, as the documentation says.
        assert (shapes(getattr(ours, name)) or None) == (shapes(getattr(theirs, name)) or None), name
    # What the class registers itself has the same keys; layers have those of their library.
    keys = [[key for key in net.state_dict() if key.startswith(("_internal", "_layer", "_weights"))] for net in twins]
    assert keys[0] == keys[1]


def test_same_outputs(twins):
    theirs, ours = twins
    generator = torch.Generator().manual_seed(2)
    if hasattr(ours, "target_shapes"):
        u = torch.randn(1, ours.uncond_in_size, generator=generator, dtype=torch.double)
        ids = {"cond_id": [1, 0, 1]} if ours.num_known_conds else {}
        calls = [((u,), {**ids, "ret_format": f}) for f in ("flattened", "sequential", "squeezed")]
    else:
        calls = [((torch.randn(INPUTS[type(ours).__name__], generator=generator, dtype=torch.double),), {})]
    for args, kwargs in calls:
        for weights in (all_weights(ours), external_weights(ours)):
            theirs.eval()
            ours.eval()
            torch.testing.assert_close(
                ours(*args, weights=weights, **kwargs), theirs(*args, weights=weights, **kwargs), rtol=1e-10, atol=1e-10
            )


def test_same_masks(twins):
    theirs, ours = twins
    if not ours.mask_fc_out:
        with pytest.raises(UsageError, match="`_has_fc_out` and `_mask_fc_out`"):
            ours.get_output_weight_mask()
        return
    for inds in (None, [1]):
        expected = theirs.get_output_weight_mask(inds)
        if type(ours).__name__ == "IntervalMLP" or type(ours).__name__ == "MaskedMLP":
            assert sum(mask is not None for mask in expected) == 1 + ours.has_bias
        for mask, other in zip(ours.get_output_weight_mask(inds), expected, strict=True):
            assert (mask is None) == (other is None)
            assert mask is None or torch.equal(mask, other)


def test_custom_init_is_that_of_the_reference(twins):
    """Before it did nothing for classes without meta data: 0 of the weights of `IntervalMLP` changed."""
    theirs, ours = twins
    before = None if ours.internal_params is None else [param.clone() for param in ours.layer_weight_tensors]
    for options in ({}, {"normal_init": True, "normal_std": 0.3}, {"zero_bias": False}):
        torch.manual_seed(3)
        theirs.custom_init(**options)
        torch.manual_seed(3)
        ours.custom_init(**options)
        for name in TENSORS[1:]:
            for one, two in zip(getattr(ours, name), getattr(theirs, name), strict=True):
                assert torch.equal(one, two)
    for param, old in zip(ours.layer_weight_tensors, before or (), strict=True):
        assert not torch.equal(param, old)

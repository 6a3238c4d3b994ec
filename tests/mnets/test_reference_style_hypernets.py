"""Hypernetworks in the reference's style."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError, UsageError
from tests.mnets.reference_cases import OURS, assign


def test_forward_arguments_are_read():
    hnet = OURS["OwnHnet"]([[2, 2], [2]], num_conds=3)
    u = torch.randn(1, 3)
    flat = hnet(u, cond_id=torch.tensor([2, 0]), ret_format="flattened")
    torch.testing.assert_close(hnet(u.expand(2, -1), cond_id=[2, 0], ret_format="flattened"), flat)
    assert [tuple(w.shape) for w in hnet(u, cond_id=(2, 0), ret_format="stacked")] == [(2, 2, 2), (2, 2)]
    embs = [torch.zeros(2)] * 3
    same = hnet(u, cond_id=1, weights={"cond_weights": embs}, ret_format="flattened")
    torch.testing.assert_close(hnet(u, cond_input=torch.zeros(1, 2), ret_format="flattened"), same)
    mine = hnet._preprocess_forward_args(
        _parse_cond_id_fct=lambda self, ids, weights: torch.tensor([[float(i)] * 2 for i in ids]), cond_id=[5, 6]
    )
    assert mine[1].tolist() == [[5, 5], [6, 6]]
    cases = [
        (ArgumentError, "ret_format: 'flat' is unknown", {"ret_format": "flat"}),
        (UsageError, "forward: no input was given", {"uncond_input": None, "cond_id": None}),
        (ArgumentError, "cond_id: excludes cond_input", {"cond_input": torch.ones(1, 2)}),
        (ArgumentError, "cond_id: 3 does not exist", {"cond_id": 3}),
        (ArgumentTypeError, "cond_id: is 0.5, a float; pass an int", {"cond_id": 0.5}),
        (ArgumentError, r"cond_input: has shape \[2\]; pass a batch", {"cond_input": torch.ones(2), "cond_id": None}),
        (ArgumentError, "uncond_input: has 3 rows, the conditional input 2", {"uncond_input": torch.ones(3, 3)}),
        (ArgumentError, "weights: 1 tensors were given; 6", {"weights": embs[:1]}),
        (ArgumentError, "weights: has the keys", {"weights": {"embs": embs}}),
        (ArgumentError, r"weights\['cond_weights'\]: has 1 tensors; pass 3", {"weights": {"cond_weights": embs[:1]}}),
        (ArgumentTypeError, "weights: is one tensor", {"weights": torch.ones(3)}),
    ]
    for error, message, kwargs in cases:
        with pytest.raises(error, match=message):
            hnet(**{"uncond_input": u, "cond_id": [0, 1], **kwargs})
    with pytest.raises(
        ArgumentError, match=r"weights: the network does not keep all of its own; pass those .* \[\[6, 5\]"
    ):
        OURS["OwnHnet"]([[2]], external=True)(u, cond_id=0)


HYPER_WRONG = {
    "conditions": (assign(_num_known_conds=None), "OwnHnet._num_known_conds: is None; set it to the number"),
    "unconditional": (assign(_unconditional_param_shapes_ref=None), "_unconditional_param_shapes_ref: is None; list"),
    "twice": (assign(_unconditional_param_shapes_ref=[0, 0]), "has the entry 0 twice; list each index once"),
    "targets": (assign(_target_shapes=None), "OwnHnet._target_shapes: is None; set it in the constructor"),
    "shapes": (
        assign(_param_shapes=[[6, 7], [6], [2, 6], [2], [2]]),
        r"_param_shapes_meta\[0\]: refers to an internal tensor \[6, 5\]",
    ),
    "shapes, without meta data": (
        assign(_param_shapes=[[6, 7], [6], [2, 6], [2], [2]], _param_shapes_meta=None),
        r"_internal_params: have the shapes \[\[6, 5\], \[6\]",
    ),
    "internal": (assign(_unconditional_params_ref=[9]), "has the entry 9, but `_internal_params` has 5"),
}


@pytest.mark.parametrize(("change", "message"), HYPER_WRONG.values(), ids=HYPER_WRONG)
def test_a_wrong_hypernetwork_is_named(change, message):
    hnet = OURS["OwnHnet"]([[2]])
    change(hnet)
    with pytest.raises(UsageError, match=message) as caught:
        hnet._is_properly_setup()
    assert isinstance(caught.value, BayeshnetError)

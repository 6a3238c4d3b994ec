"""The interface on its own: classes that only mix it in, and its helpers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP, HPerturbWrapper, HyperNet, HyperNetInterface
from bayeshnet.mnets.mnet_interface import MainNetInterface

from .foreign import Foreign


@pytest.fixture
def foreign():
    return Foreign([[2, 2], [2]], 3)


def test_it_is_a_plain_mix_in():
    assert issubclass(HyperNetInterface, MainNetInterface)
    assert not issubclass(HyperNetInterface, nn.Module)
    assert HyperNet.__bases__ == (nn.Module, HyperNetInterface)
    with pytest.raises(TypeError, match="abstract"):
        HyperNetInterface()


def test_private_lists_make_the_table(foreign):
    assert foreign.target_shapes == [[2, 2], [2]]
    assert foreign.num_outputs == 6
    assert foreign.num_known_conds == 2
    assert foreign.conditional_param_shapes == [[6], [6]]
    assert foreign.conditional_param_shapes_ref == [0, 1]
    assert foreign.unconditional_param_shapes == [[6, 3]]
    assert foreign.unconditional_param_shapes_ref == [2]
    assert foreign.unconditional_params_ref == [2]
    assert foreign.unconditional_params[0] is foreign.internal_params[2]
    assert [p is q for p, q in zip(foreign.conditional_params, foreign.internal_params, strict=False)] == [True, True]
    assert foreign.hyper_shapes_learned is None
    assert list(foreign.state_dict()) == [f"_internal_params.{i}" for i in range(3)]
    assert [t.shape for t in foreign(torch.ones(1, 3), cond_id=0)] == [(2, 2), (2,)]


def test_private_lists_with_external_weights():
    net = Foreign([[2]], 1, num_conds=1)
    net._internal_params = None
    net._hyper_shapes_learned = net._param_shapes
    net._hyper_shapes_learned_ref = [0, 1]
    assert net.hyper_shapes_learned == [[2], [2, 1]]
    assert net.internal_params is None
    assert net.unconditional_params is None
    assert net.unconditional_params_ref is None
    assert net.conditional_params is None


def test_functional_call_and_copies_reach_the_parameters(foreign):
    z = torch.ones(1, 3)
    zeros = {name: torch.zeros_like(p) for name, p in foreign.named_parameters()}
    out = torch.func.functional_call(foreign, zeros, (z,), {"cond_id": 1, "ret_format": "flattened"})
    assert not out.any()
    for twin in (copy.deepcopy(foreign), pickle.loads(pickle.dumps(foreign))):
        assert torch.equal(twin(z, cond_id=1)[0], foreign(z, cond_id=1)[0])


def test_wrapping_uses_the_interface_only(foreign):
    hnet = HPerturbWrapper(foreign, 3, sigma_noise=0.5)
    z = torch.randn(1, 6)
    out = hnet(z, cond_id=(0, 1), ret_format="flattened")
    expected = foreign(z[:, :3].expand(2, -1), cond_id=[0, 1], ret_format="flattened") + 0.5 * z
    torch.testing.assert_close(out, expected)
    assert hnet.param_shapes_meta == foreign.param_shapes_meta
    with pytest.raises(
        ArgumentError, match="hnet_uncond_in_size: Foreign does not tell the size .* attribute, or pass the"
    ):
        HPerturbWrapper(foreign)


def test_add_to_uncond_params(foreign):
    (summed,) = foreign.add_to_uncond_params([torch.ones(6, 3)])
    assert torch.equal(summed, foreign.internal_params[2] + 1)
    (summed,) = foreign.add_to_uncond_params([torch.ones(2)], params=[torch.ones(2)])
    assert torch.equal(summed, torch.full((2,), 2.0))
    with pytest.raises(ArgumentError, match="dparams: has 0 tensors; pass one for each of the 1 parameters"):
        foreign.add_to_uncond_params([])
    with pytest.raises(ArgumentError, match=r"dparams\[0\]: has shape \[3\]; pass one of the parameter's, \[6, 3\]"):
        foreign.add_to_uncond_params([torch.ones(3)])
    hnet = HMLP([[2]], no_uncond_weights=True)
    # A ValueError, as in the reference; before it was a RuntimeError.
    with pytest.raises(ArgumentError, match="params: is None, but this HMLP keeps no unconditional parameters"):
        hnet.add_to_uncond_params([])


def test_deprecated_accessors(foreign):
    with pytest.warns(DeprecationWarning, match="conditional_params"):
        assert foreign.get_task_emb(1) is foreign.internal_params[1]
    with pytest.warns(DeprecationWarning, match="conditional_params"):
        assert [id(p) for p in foreign.get_task_embs()] == [id(p) for p in foreign.conditional_params]
    for wrong in (2, -1):
        with (
            pytest.warns(DeprecationWarning, match="task_emb"),
            pytest.raises(ArgumentError, match=f"task_id: is {wrong}; pass an index into the 2"),
        ):
            foreign.get_task_emb(wrong)
    with (
        pytest.warns(DeprecationWarning, match="get_task_emb"),
        pytest.raises(ArgumentTypeError, match="task_id: is .*; pass an int"),
    ):
        foreign.get_task_emb("0")
    with pytest.warns(DeprecationWarning, match="get_task_embs"):
        assert HMLP([[2]], 1, 0).get_task_embs() is None

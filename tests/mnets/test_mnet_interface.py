# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.mnets.mnet_interface import MainNetInterface
from tests.mnets.networks import ByLists, ByRecords


def test_third_party_by_records():
    net = ByRecords()
    assert net.param_shapes == [[4, 3], [4], [1, 4]]
    assert [m["index"] for m in net.param_shapes_meta] == [0, 1, 2]
    assert net.internal_params_ref == [0, 1, 2]
    assert net.hyper_shapes_learned is net.hyper_shapes_learned_ref is net.hyper_shapes_distilled is None
    assert net.num_params == net.num_internal_params == 20
    assert net.weights is net.internal_params
    assert net.param_names == ["1.weight", "1.bias", "2.weight"]
    assert [len(net.layer_weight_tensors), len(net.layer_bias_vectors)] == [2, 1]
    assert net.batchnorm_layers is net.context_mod_layers is None
    assert (net.has_bias, net.has_fc_out, net.mask_fc_out, net.has_linear_out) == (False, True, True, False)
    assert net(torch.randn(2, 3)).shape == (2, 1)


def test_third_party_by_lists():
    net = ByLists()
    assert net.param_shapes == [[4, 3], [4], [1, 4]]
    assert net.param_shapes_meta[1] == {"name": "bias", "index": 0, "layer": 1}
    assert net.internal_params_ref == [1, 2]
    assert net.hyper_shapes_learned == [[4, 3]]
    assert net.hyper_shapes_learned_ref == [0]
    assert (net.num_params, net.num_internal_params) == (20, 8)
    assert net(torch.randn(2, 3), weights=[torch.randn(4, 3)]).shape == (2, 1)


def test_undescribed_or_ambiguous():
    net = ByLists()
    del net._hyper_shapes_learned_ref
    assert net.hyper_shapes_learned_ref == [0]  # by the meta data
    del net._param_shapes_meta
    with pytest.raises(UsageError, match="set `_hyper_shapes_learned_ref` too"):
        _ = net.hyper_shapes_learned_ref
    del net._param_shapes
    with pytest.raises(UsageError, match="ByLists has not described its parameters"):
        _ = net.param_shapes


def test_flatten_and_unflatten():
    params = [torch.randn(2, 3), torch.randn(()), torch.randn(4)]
    shapes = [[2, 3], [], [4]]
    flat = MainNetInterface.flatten_params(params)
    assert flat.shape == (MainNetInterface.shapes_to_num_weights(shapes),)
    parts = MainNetInterface.flatten_params(flat, shapes, unflatten=True)
    torch.testing.assert_close(parts, params)
    assert parts[0].data_ptr() == flat.data_ptr()
    with pytest.raises(ArgumentError, match="param_shapes: is required"):
        MainNetInterface.flatten_params(flat, unflatten=True)
    with pytest.raises(ArgumentError, match=r"params: has shape \(11,\), but param_shapes ask for \[2\]"):
        MainNetInterface.flatten_params(flat, [[2]], unflatten=True)
    with pytest.raises(ArgumentTypeError, match="pass a list"):
        MainNetInterface.flatten_params(flat)
    with pytest.raises(ArgumentTypeError, match="one vector is expected"):
        MainNetInterface.flatten_params(params, shapes, unflatten=True)


def test_overwrite_internal_params():
    net = ByRecords()
    new = [torch.randn(shape) for shape in net.param_shapes]
    before = list(net.internal_params)
    net.overwrite_internal_params(new)
    torch.testing.assert_close([p.detach() for p in net.internal_params], new)
    assert all(a is b for a, b in zip(before, net.internal_params, strict=True))
    with pytest.raises(ArgumentError, match="2 tensors were given, the network keeps 3"):
        net.overwrite_internal_params(new[:2])
    with pytest.raises(ArgumentError, match=r"new_params\[1\]: has shape \(4, 3\)"):
        net.overwrite_internal_params([new[0], new[0], new[2]])
    torch.testing.assert_close([p.detach() for p in net.internal_params], new)


def test_custom_init():
    net = ByRecords()
    net.custom_init()
    w, b, a = net.internal_params
    assert b.eq(0).all()
    assert w.abs().max() <= (6 / 7) ** 0.5
    nn.init.ones_(b)
    net.custom_init(normal_init=True, normal_std=1e-3, zero_bias=False)
    assert b.eq(1).all()
    assert 0 < a.abs().max() < 0.01


def test_output_weight_mask():
    net = ByRecords()
    net._records = (*net._records[:2], net._records[2])
    masks = net.get_output_weight_mask()
    assert masks[:2] == [None, None]
    assert masks[2].all()
    assert not net.get_output_weight_mask(out_inds=[])[2].any()
    with pytest.raises(ArgumentError, match=r"out_inds: \[1\] has entries outside 0\.\.0"):
        net.get_output_weight_mask(out_inds=[1])
    net._mask_fc_out = False
    with pytest.raises(UsageError, match="no fully-connected output layer"):
        net.get_output_weight_mask()

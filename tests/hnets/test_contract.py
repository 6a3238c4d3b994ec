"""What every hypernetwork class does, in every configuration."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayeshnet.hnets.formats import RET_FORMATS
from bayeshnet.layers import SpectralNorm

from .factories import FACTORIES, Call, calls


def run(call: Call, hnet: Any = None, ret_format: str = "flattened", weights: Any = None) -> Any:
    torch.manual_seed(7)  # dropout
    hnet = call.hnet if hnet is None else hnet
    return hnet(**call.kwargs, weights=call.weights if weights is None else weights, ret_format=ret_format)


def same(one: Any, two: Any, **tolerance: float) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, two, **tolerance)
    else:
        assert type(one) is type(two)
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same(a, b, **tolerance)


def snapshot(value: Any) -> Any:
    """A copy to compare with: containers by value and identity of their entries, tensors by value."""
    if isinstance(value, dict):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [(id(entry), snapshot(entry)) for entry in value]
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool((one == two).all()) if hasattr(one, "all") else one == two


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_contract(factory, data):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        call = data.draw(calls(factory))
        before = snapshot({"kwargs": call.kwargs, "weights": call.weights})
        check_formats(call)
        check_gradients(call)
        check_external_equals_internal(call)
        check_copies(call)
        check_tables(call)
    assert equal(snapshot({"kwargs": call.kwargs, "weights": call.weights}), before), "an argument was changed"
    assert out.getvalue() == ""


def check_formats(call: Call) -> None:
    hnet, batch, shapes = call.hnet, call.batch_size, call.hnet.target_shapes
    outs = {fmt: run(call, ret_format=fmt) for fmt in RET_FORMATS}
    assert outs["flattened"].shape == (batch, hnet.num_outputs)
    assert [list(t.shape) for t in outs["stacked"]] == [[batch, *shape] for shape in shapes]
    assert [[list(t.shape) for t in sample] for sample in outs["sequential"]] == [shapes] * batch
    same(outs["squeezed"], outs["sequential"][0] if batch == 1 else outs["sequential"])
    for src, trgt in itertools.product(RET_FORMATS, repeat=2):
        same(hnet.convert_out_format(outs[src], src, trgt), outs[trgt])


def check_gradients(call: Call) -> None:
    hnet = call.hnet
    out = run(call)
    (out * torch.randn_like(out)).sum().backward()
    attention = [i for i, record in enumerate(hnet.param_table) if record.extra.get("info") == "self-attention"]
    key_biases = attention[3::7]
    for i, (record, tensor) in enumerate(zip(hnet.param_table, call.full, strict=True)):
        if record.conditional and record.condition not in call.used_conds:
            assert tensor.grad is None or not tensor.grad.any(), record
            continue
        assert tensor.grad is not None, record
        # Divided by its norm, a single number is its sign.
        if record.name == "weight" and record.numel == 1 and any(isinstance(m, SpectralNorm) for m in hnet.modules()):
            continue
        # The bias of the keys adds the same to all scores of a query, and softmax takes it away again.
        if i in key_biases:
            continue
        # In training, batch norm cancels the bias before it and dropout cuts units off.
        if not hnet.training:
            assert tensor.grad.any(), record
    learned_scale = [p for p in hnet.parameters() if not any(p is t for t in call.full)]
    assert all(p.grad is not None and p.grad.any() for p in learned_scale)
    for tensor in [*call.full, *learned_scale]:
        tensor.grad = None


def check_external_equals_internal(call: Call) -> None:
    hnet, full = call.hnet, call.full
    # Detached: the network cannot know its own.
    given = [tensor.detach().clone() for tensor in full]
    refs = {"uncond_weights": hnet.unconditional_param_shapes_ref, "cond_weights": hnet.conditional_param_shapes_ref}
    lists = {**{key: [given[i] for i in ref] for key, ref in refs.items()}, **call.extra}
    # Sigma of internal weights follows by a power iteration in training mode.
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    expected = run(call)
    same(run(call, weights=lists), expected, **tolerance)
    if not call.extra:
        same(run(call, weights=given), expected, **tolerance)
        same(run(call, weights=tuple(given)), expected, **tolerance)


def check_copies(call: Call) -> None:
    hnet = call.hnet
    saved = copy.deepcopy(hnet.state_dict())
    expected = run(call, copy.deepcopy(hnet))
    same(run(call, pickle.loads(pickle.dumps(hnet))), expected)
    other = copy.deepcopy(hnet)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.add_(1)
    other.load_state_dict(saved)
    same(run(call, other), expected)


def check_tables(call: Call) -> None:
    hnet = call.hnet
    state = hnet.state_dict(keep_vars=True)
    assert len({id(tensor) for tensor in state.values()}) == len(state)
    assert len(list(hnet.parameters())) == len({id(p) for p in hnet.parameters()})
    internal = list(hnet.internal_params or [])
    ids = [id(p) for p in hnet.parameters()]
    places = [ids.index(id(p)) for p in internal]
    assert places == sorted(places), "registered in another order than that of the table"
    assert hnet.num_params == sum(t.numel() for t in call.full)
    assert hnet.num_internal_params == sum(p.numel() for p in internal)
    assert [list(p.shape) for p in internal] == [hnet.param_shapes[i] for i in hnet.internal_params_ref or []]
    for i, meta in enumerate(hnet.param_shapes_meta):
        assert {"name", "index", "layer"} <= meta.keys()
        if meta["index"] == -1:
            assert i in (hnet.hyper_shapes_learned_ref or [])
        else:
            assert internal[meta["index"]] is call.full[i]
    uncond, cond = hnet.unconditional_param_shapes_ref, hnet.conditional_param_shapes_ref
    assert sorted(uncond + cond) == list(range(len(hnet.param_shapes)))
    assert hnet.unconditional_param_shapes == [hnet.param_shapes[i] for i in uncond]
    assert hnet.conditional_param_shapes == [hnet.param_shapes[i] for i in cond]
    kept = [*(hnet.unconditional_params or []), *(hnet.conditional_params or [])]
    assert {id(p) for p in kept} == {id(p) for p in internal}
    for ref, param in zip(hnet.unconditional_params_ref or [], hnet.unconditional_params or [], strict=True):
        assert internal[ref] is param
    for empty in (hnet.hyper_shapes_learned, hnet.conditional_params, hnet.unconditional_params, hnet.internal_params):
        assert empty is None or len(empty) > 0

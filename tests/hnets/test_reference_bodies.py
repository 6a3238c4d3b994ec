"""The reference's own classes, executed with our interfaces in the place of its: the strictest users there are.

Their source is read from the installed package at run time; nothing of it is kept here. Before, none could be built:
``AttributeError: 'HMLP' object has no attribute '_add_fc_layers'`` and the like.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types

import pytest
import torch

from bayeshnet.hnets import HyperNetInterface
from bayeshnet.mnets import MainNetInterface
from tests.mnets.third_party import quiet

LISTS = [
    *(
        "param_shapes",
        "param_shapes_meta",
        "hyper_shapes_learned",
        "hyper_shapes_learned_ref",
        "hyper_shapes_distilled",
    ),
    *("has_bias", "has_fc_out", "mask_fc_out", "has_linear_out", "num_params", "num_internal_params"),
]
HYPER_LISTS = [
    *("target_shapes", "num_outputs", "num_known_conds", "unconditional_param_shapes", "conditional_param_shapes"),
    *("unconditional_param_shapes_ref", "conditional_param_shapes_ref", "unconditional_params_ref"),
]
IMAGE = {"in_shape": (8, 8, 3), "n": 1}
MAIN = [
    ("lenet", "LeNet", {}, (2, 784)),
    ("lenet", "LeNet", {"no_weights": True}, (2, 784)),
    ("lenet", "LeNet", {"use_context_mod": True}, (2, 784)),
    ("lenet", "LeNet", {"use_context_mod": True, "context_mod_no_weights": True}, (2, 784)),
    ("simple_rnn", "SimpleRNN", {"n_in": 3, "rnn_layers": (5,), "fc_layers": (2,)}, (4, 2, 3)),
    ("simple_rnn", "SimpleRNN", {"n_in": 3, "rnn_layers": (5,), "fc_layers": (2,), "no_weights": True}, (4, 2, 3)),
    ("mlp", "MLP", {"n_in": 3, "use_batch_norm": True}, (4, 3)),
    ("mlp", "MLP", {"n_in": 3, "no_weights": True, "use_context_mod": True}, (4, 3)),
    ("mlp", "MLP", {"n_in": 3, "use_context_mod": True, "use_batch_norm": True, "distill_bn_stats": True}, (4, 3)),
    ("resnet", "ResNet", {**IMAGE}, (2, 192)),
    ("resnet", "ResNet", {**IMAGE, "no_weights": True}, (2, 192)),
    ("wide_resnet", "WRN", {**IMAGE, "k": 1}, (2, 192)),
    ("zenkenet", "ZenkeNet", {}, (2, 3072)),
]
HYPER = [
    ("mlp_hnet", "HMLP", {"target_shapes": [[2, 2], [2]], "uncond_in_size": 2}),
    ("mlp_hnet", "HMLP", {"target_shapes": [[2, 2], [2]], "num_cond_embs": 3, "use_batch_norm": True}),
    ("chunked_mlp_hnet", "ChunkedHMLP", {"target_shapes": [[4, 4]], "chunk_size": 3}),
    (
        *("chunked_mlp_hnet", "ChunkedHMLP"),
        {"target_shapes": [[4, 4]], "chunk_size": 3, "cond_chunk_embs": True, "num_cond_embs": 2},
    ),
]


def ported(module, monkeypatch):
    """The module of the reference, and its source executed on our interfaces."""
    theirs = importlib.import_module(f"hypnettorch.{module}")
    source = inspect.getsource(theirs)
    for name in ("mnets.mnet_interface", "hnets.hnet_interface"):
        source = source.replace(f"hypnettorch.{name}", f"bayeshnet.{name}")
    for inner in ("mnets.classifier_interface", "hnets.mlp_hnet"):
        if f"from hypnettorch.{inner}" in source:
            name = f"ported_{inner.rsplit('.', 1)[1]}"
            monkeypatch.setitem(sys.modules, name, ported(inner, monkeypatch)[1])
            source = source.replace(f"hypnettorch.{inner}", name)
    ours = types.ModuleType(f"ported.{module}")
    exec(compile(source, theirs.__file__, "exec"), ours.__dict__)
    return theirs, ours


def both(module, name, options, monkeypatch):
    pytest.importorskip("hypnettorch")
    with quiet():
        theirs, ours = (getattr(lib, name)(**options) for lib in ported(module, monkeypatch))
        if ours.internal_params is not None:
            ours.overwrite_internal_params([param.detach() for param in theirs.internal_params])
    return theirs.eval(), ours.eval()


def assert_same_lists(theirs, ours, names):
    for name in names:
        with quiet():  # WRN warns of `has_bias`
            try:
                expected = getattr(theirs, name)
            except NotImplementedError:
                assert name == "param_shapes_meta"
                continue
            assert getattr(ours, name) == expected, name
    for name in ("internal_params", "layer_weight_tensors", "layer_bias_vectors"):
        one, two = ([None if p is None else p.shape for p in getattr(net, name) or ()] for net in (theirs, ours))
        assert one == two, name


@pytest.mark.parametrize(("module", "name", "options", "shape"), MAIN)
def test_main_networks(module, name, options, shape, monkeypatch):
    theirs, ours = both(f"mnets.{module}", name, options, monkeypatch)
    assert isinstance(ours, MainNetInterface)
    assert not isinstance(theirs, MainNetInterface)
    assert_same_lists(theirs, ours, LISTS)
    torch.manual_seed(0)
    x, weights = torch.randn(shape), [0.3 * torch.randn(s) for s in ours.param_shapes]
    outs = [net(x, weights=weights) for net in (theirs, ours)]
    outs = [out if isinstance(out, torch.Tensor) else out[0] for out in outs]
    assert torch.equal(*outs)
    with quiet():
        masks = [net.get_output_weight_mask([0]) for net in (theirs, ours)]
    for one, two in zip(*masks, strict=True):
        assert one is two is None or torch.equal(one, two)
    for net in (theirs, ours):
        torch.manual_seed(1)
        net.custom_init()
    for one, two in zip(theirs.layer_weight_tensors, ours.layer_weight_tensors, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("module", "name", "options"), HYPER)
def test_hypernetworks(module, name, options, monkeypatch):
    theirs, ours = both(f"hnets.{module}", name, options, monkeypatch)
    assert isinstance(ours, HyperNetInterface)
    assert_same_lists(theirs, ours, LISTS + HYPER_LISTS)
    torch.manual_seed(0)
    inputs = {"cond_id": [0]}
    if options.get("uncond_in_size"):
        inputs["uncond_input"] = torch.randn(3, options["uncond_in_size"])
    for ret_format in ("flattened", "sequential", "squeezed"):
        torch.testing.assert_close(
            ours(**inputs, ret_format=ret_format), theirs(**inputs, ret_format=ret_format), rtol=0, atol=0
        )

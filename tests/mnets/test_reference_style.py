"""Classes written for the reference's interfaces run unchanged: six of them on either library.

Before (commit 5a497f3) none of the 16 configurations could be built: ``_parse_context_mod_args``, ``_add_fc_layers``,
``_add_batchnorm_layers`` and ``_is_properly_setup`` did not exist, nor did the attributes that start as None."""

from __future__ import annotations

import copy
import importlib
import pickle
import warnings

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.mnets import MLP, MainNetInterface, batched_forward, functional_copy
from tests.mnets.reference_cases import INPUTS, MAIN, OURS, assign, make, shapes
from tests.mnets.third_party import quiet


@pytest.mark.parametrize("name", MAIN)
def test_the_rest_of_the_package_takes_them(name):
    net = make("bayeshnet", *MAIN[name]).eval()
    x = torch.randn(INPUTS[type(net).__name__], dtype=torch.double)
    weights = [torch.randn(4, *shape, dtype=torch.double) for shape in net.param_shapes]
    expected = torch.stack([net(x, weights=[w[s] for w in weights]) for s in range(4)])
    torch.testing.assert_close(batched_forward(net, torch.cat([w.flatten(1) for w in weights], 1), x), expected)
    for twin in (copy.deepcopy(net), functional_copy(net)):
        torch.testing.assert_close(twin(x, weights=[w[0] for w in weights]), expected[0])
    assert functional_copy(net).internal_params is None
    # Meta data, references and parameters agree, whatever the order of the internal ones.
    for i, entry in enumerate(net.param_shapes_meta):
        if entry["index"] >= 0:
            assert list(net.internal_params[entry["index"]].shape) == net.param_shapes[i]
            assert net.internal_params_ref[entry["index"]] == i
    assert len(set(net.param_names)) == len(net.param_shapes)
    if net.internal_params is not None and net.hyper_shapes_learned is None:
        values = [torch.randn_like(param) for param in net.internal_params]
        net.overwrite_internal_params(values)
        flat = net.flatten_params(net.internal_params)
        assert flat.shape == (net.num_params,)
        twin = make("bayeshnet", *MAIN[name]).eval()
        twin.load_state_dict(net.state_dict())
        torch.testing.assert_close(twin(x), net(x))
    assert shapes(net.distillation_targets()) == net.hyper_shapes_distilled


def line_on(base):
    class Line(nn.Module, base):  # pyright: ignore[reportUntypedBaseClass] - that of either library
        """A linear layer whose set-up is spoilt by ``change``."""

        def __init__(self, change=lambda net: None, check=True):
            nn.Module.__init__(self)
            base.__init__(self)
            self._has_bias = self._has_fc_out = self._mask_fc_out = self._has_linear_out = True
            self._param_shapes = [[2, 3], [2]]
            self._param_shapes_meta = [{"name": n, "index": i, "layer": 1} for i, n in enumerate(["weight", "bias"])]
            self._internal_params = nn.ParameterList([nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))])
            self._layer_weight_tensors = nn.ParameterList([self._internal_params[0]])
            self._layer_bias_vectors = nn.ParameterList([self._internal_params[1]])
            change(self)
            if check:
                self._is_properly_setup()

        def distillation_targets(self):
            return None

        def forward(self, x, weights=None, distilled_params=None, condition=None):
            return nn.functional.linear(x, *(self.internal_params if weights is None else weights))

    Line.__qualname__ = "Line"
    return Line


Line = line_on(MainNetInterface)


def test_pickle():
    net = pickle.loads(pickle.dumps(Line()))
    assert torch.equal(net(torch.ones(1, 3)), torch.full((1, 2), 4.0))


def meta(i, **entry):
    def change(net):
        net._param_shapes_meta[i].update(entry)

    return change


WRONG = {
    "no shapes": (assign(_param_shapes=None), r"`_param_shapes` in its constructor"),
    "shapes of one tensor": (assign(_param_shapes=[2, 3]), r"Line._param_shapes: entry 0 is 2; list shapes"),
    "neither": (assign(_internal_params=None), r"Line._internal_params: and `_hyper_shapes_learned` are both None"),
    "too few tensors": (
        assign(_param_shapes=[[2, 3], [2], [2]]),
        "_internal_params: has 2 tensors for 3 `_param_shapes`",
    ),
    "meta for one": (assign(_param_shapes_meta=[{}]), "_param_shapes_meta: has 1 entries for 2"),
    "no keys": (
        assign(_param_shapes_meta=[{}, {}]),
        r"_param_shapes_meta\[0\]: is {}; make it a dict with the keys 'name'",
    ),
    "name": (meta(0, name="kernel"), r"_param_shapes_meta\[0\]: has the name 'kernel'; use one of"),
    "index": (meta(1, index=2), r"_param_shapes_meta\[1\]: has the index 2, but `_internal_params` has 2 tensors"),
    "float": (meta(0, layer=0.5), r"_param_shapes_meta\[0\]: has the layer 0.5; use an int"),
    "swapped": (
        assign(_param_shapes_meta=[{"name": None, "index": 1 - i, "layer": -1} for i in range(2)]),
        r"_param_shapes_meta\[0\]: refers to an internal tensor \[2\] \(index 1\), but `_param_shapes\[0\]` is",
    ),
    "references": (
        assign(_hyper_shapes_learned=[[2]], _hyper_shapes_learned_ref=[2]),
        "_hyper_shapes_learned_ref: has the entry 2, but `_param_shapes` has 2",
    ),
    "references of other shapes": (
        assign(_hyper_shapes_learned=[[2]], _hyper_shapes_learned_ref=[0]),
        r"_hyper_shapes_learned_ref: is \[0\], the places of \[\[2, 3\]\], but `_hyper_shapes_learned` has \[\[2\]\]",
    ),
    # These were accepted: num_params was that of the wrong lists.
    "other shapes": (
        assign(_param_shapes_meta=None, _param_shapes=[[2, 4], [2]]),
        r"_internal_params: have the shapes \[\[2, 3\], \[2\]\], but those of .* not external are \[\[2, 4\], \[2\]\]",
    ),
    "another order": (
        assign(_param_shapes_meta=None, _param_shapes=[[2], [2, 3]]),
        r"_internal_params: have the shapes \[\[2, 3\], \[2\]\], but",
    ),
    "external ones that there are not": (
        assign(_hyper_shapes_learned=[[3, 3]]),
        r"_hyper_shapes_learned: is \[\[3, 3\]\], but those of `_param_shapes` that the network does not keep are \[\]",
    ),
    "some external, but which": (
        assign(_hyper_shapes_learned=[[3, 3]], _param_shapes_meta=None),
        "_hyper_shapes_learned: names 1 of 2 tensors; set `_hyper_shapes_learned_ref` too",
    ),
    "all external, other shapes": (
        assign(_hyper_shapes_learned=[[3, 3], [9]], _param_shapes_meta=None, _internal_params=None),
        r"_hyper_shapes_learned: is \[\[3, 3\], \[9\]\], but those of .* not keep are \[\[2, 3\], \[2\]\]",
    ),
    "external by index only": (
        meta(1, index=-1),
        r"_hyper_shapes_learned: is None, but those of `_param_shapes` that the network does not keep are \[\[2\]\]",
    ),
    "kept and not listed": (
        lambda net: (
            meta(1, index=-1)(net),
            assign(_hyper_shapes_learned=[[2]], _hyper_shapes_learned_ref=[1])(net),
        ),
        "_internal_params: has 2 tensors, but `_param_shapes_meta` has an index for 1",
    ),
    "references to some": (
        lambda net: (
            assign(_hyper_shapes_learned=[[2, 3]], _hyper_shapes_learned_ref=[0], _internal_params=None)(net),
            meta(0, index=-1)(net),
            meta(1, index=-1)(net),
        ),
        r"_hyper_shapes_learned_ref: is \[0\], but `_param_shapes_meta` has the index -1 \(not kept\) at \[0, 1\]",
    ),
    "flag": (assign(_has_linear_out=None), "_has_linear_out: is None; set it to True or False"),
    "bias flag": (assign(_has_bias=None), "_has_bias: is None; set it to True or False"),
    "views": (assign(_layer_bias_vectors=None), r"_layer_bias_vectors: is None; fill a list, nn.ParameterList\(\)"),
    "a bias less": (assign(_layer_bias_vectors=nn.ParameterList()), "has 0 entries for 1 in `_layer_weight_tensors`"),
    "both names": (assign(_weights=nn.ParameterList()), "_weights: is set beside `_internal_params`; keep the latter"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_set_up_is_named_at_construction(change, message):
    with pytest.raises(UsageError, match=message):
        Line(change)


@pytest.mark.parametrize(
    "name", [name for name in WRONG if name not in ("flag", "bias flag", "views", "a bias less", "both names")]
)
def test_or_at_the_first_use(name):
    change, message = WRONG[name]
    net = Line(change, check=False)
    with pytest.raises(UsageError, match=message):
        batched_forward(net, torch.ones(1, 8), torch.ones(1, 3))


ONLY_OURS = {
    *("shapes of one tensor", "swapped", "references of other shapes", "other shapes", "another order"),
    *("external ones that there are not", "some external, but which", "all external, other shapes"),
    *("external by index only", "kept and not listed", "references to some"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_reference_refuses_the_same(name):
    """What it checks, it checks by ``assert``; contradictions between lists only we see."""
    pytest.importorskip("hypnettorch")
    with quiet():
        theirs = line_on(importlib.import_module("hypnettorch.mnets.mnet_interface").MainNetInterface)
    change, _ = WRONG[name]
    theirs()
    if name in ONLY_OURS:
        theirs(change)
    else:
        with pytest.raises(AssertionError):
            theirs(change)


def test_deprecated_names_warn():
    def old(net):
        net._all_shapes, net._param_shapes = net._param_shapes, None

    with pytest.warns(DeprecationWarning, match="Line._all_shapes is deprecated; set `_param_shapes`"):
        assert Line(old).param_shapes == [[2, 3], [2]]

    def weights(net):
        net._weights, net._internal_params = net._internal_params, None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Line(weights).internal_params) == 2
        assert len(Line(weights, check=False).internal_params) == 2


def test_custom_init_without_names_and_lists_is_refused():
    """Before it did nothing, silently."""

    def bare(net):
        net._param_shapes_meta = net._layer_weight_tensors = net._layer_bias_vectors = None

    with pytest.raises(UsageError, match="custom_init: Line keeps 8 weights and does not say what they are"):
        Line(bare, check=False).custom_init()
    named = Line(assign(_layer_weight_tensors=None, _layer_bias_vectors=None), check=False)
    named.custom_init()  # by the meta data
    assert not (named.internal_params[0] == 1).any()
    assert not named.internal_params[1].any()


def test_custom_init_lets_modulation_do_nothing():
    """Relative of the above: gains with an offset became 1, a factor of 2."""
    net = OURS["LeNet"](use_context_mod=True, context_mod_gain_offset=True)
    net.custom_init()
    assert all(not param.any() for layer in net.context_mod_layers for param in layer.weights)
    net = OURS["ResidualNet"]()
    with torch.no_grad():
        for param in net.internal_params:
            param.fill_(7.0)
    net.custom_init()
    scale, shift = net.batchnorm_layers[0].weights
    assert (scale == 1).all()
    assert not shift.any()


def test_masks_without_names():
    """Before: ``ValueError: max() arg is an empty sequence``."""
    masks = OURS["IntervalMLP"]().get_output_weight_mask([0])
    assert [mask is None for mask in masks] == [True, True, False, False]
    assert masks[2].tolist() == [[True] * 5, [False] * 5]
    assert masks[3].tolist() == [True, False]
    masks = OURS["IntervalMLP"](no_weights=True).get_output_weight_mask([0])
    assert masks[3].tolist() == [True, False]
    empty = {"_layer_weight_tensors": nn.ParameterList(), "_layer_bias_vectors": nn.ParameterList()}
    strange = Line(assign(_param_shapes_meta=None, _has_bias=False, **empty))
    with pytest.raises(UsageError, match=r"_param_shapes_meta: does not say .* \[\[2\]\], are no weight matrix"):
        strange.get_output_weight_mask()


def test_masks_find_the_bias_of_the_layer():
    """Relative: with all weights before all biases the mask of the output's bias was missing."""

    def change(net):
        shapes = [[4, 3], [2, 4], [4], [2]]
        net._param_shapes = shapes
        net._param_shapes_meta = [
            {"name": name, "index": i, "layer": layer}
            for i, (name, layer) in enumerate([("weight", 1), ("weight", 2), ("bias", 1), ("bias", 2)])
        ]
        net._internal_params = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])

    masks = Line(change).get_output_weight_mask([1])
    assert [mask is None for mask in masks] == [True, False, True, False]
    assert masks[3].tolist() == [False, True]


def test_lists_grow_through_the_properties():
    """Relative: ``self.param_shapes.append(...)`` in a constructor went to a copy and was lost."""
    net = OURS["LeNet"]()
    assert net.param_shapes is net._param_shapes
    assert net.param_shapes_meta is net._param_shapes_meta
    net = OURS["LeNet"](no_weights=True)
    assert net.hyper_shapes_learned is net._hyper_shapes_learned
    assert net.hyper_shapes_learned_ref is net._hyper_shapes_learned_ref
    assert Line(assign(_param_shapes=[(2, 3), torch.Size([2])])).param_shapes == [[2, 3], [2]]


def test_helpers_name_wrong_arguments():
    net = Line()
    with pytest.raises(UsageError, match="Line._context_mod_no_weights: is not set; set it before"):
        net._add_context_mod_layers([[3]])
    with pytest.raises(ArgumentError, match="bn_layers: has 1 entries for 2 layers"):
        net._add_batchnorm_layers([2, 2], False, bn_layers=[1])
    with pytest.raises(ArgumentError, match="out_sizes: has 1 entries for 2 in_sizes"):
        net._add_fc_layers([2, 2], [1], False)
    options = {"use_context_mod": True, "colour": 3, "dropout_rate": 0.1}
    assert MainNetInterface._parse_context_mod_args(options) == ["colour"]
    assert options["context_mod_gain_offset"] is False
    assert "verbose" not in options


def test_lists_beside_a_table_are_refused():
    """They would have no effect."""
    net = MLP(2, 1)
    net._is_properly_setup()
    with pytest.raises(UsageError, match="MLP._records: is the table of this network; extend the table"):
        net._add_fc_layers([1], [1], False)
    net._param_shapes = [[1]]
    with pytest.raises(UsageError, match="MLP._param_shapes: is set beside `_records`, the table; keep one"):
        net._is_properly_setup()


def test_a_second_constructor_call_takes_nothing_away():
    net = Line()
    MainNetInterface.__init__(net)
    assert len(net.internal_params) == 2

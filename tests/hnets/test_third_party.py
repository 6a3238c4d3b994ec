"""Third-party hypernetworks inside the package's own, subclasses that use the reference's private names, and paths."""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
import torch
from torch import nn

from bayeshnet import hnets, mnets
from bayeshnet.errors import ArgumentError, BayeshnetWarning, UsageError
from bayeshnet.hnets import (
    HMLP,
    ChunkedHMLP,
    HContainer,
    HPerturbWrapper,
    HyperNetInterface,
    StructuredHMLP,
    get_conditional_parameters,
    init_conditional_embeddings,
)
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.mnets import MLP
from bayeshnet.mnets.own_lists import kept_params
from tests.hnets.foreign import Foreign
from tests.mnets.third_party import networks, quiet

OwnHnet = networks("bayeshnet")["OwnHnet"]


class Permuted(nn.Module, HyperNetInterface):
    """``w = W u + b + e_i``, with every order its own: parameters backwards, unconditional references (2, 0)."""

    def __init__(self, num, in_size, num_conds=2):
        nn.Module.__init__(self)
        HyperNetInterface.__init__(self)
        self._target_shapes, self._num_known_conds = [[num]], num_conds
        self._param_shapes = [[num], *[[num]] * num_conds, [num, in_size]]
        last = num_conds + 1
        names = ["bias", *["embedding"] * num_conds, "weight"]
        self._param_shapes_meta = [{"name": n, "index": last - i, "layer": -1} for i, n in enumerate(names)]
        self._internal_params = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in reversed(self._param_shapes)])
        self._layer_weight_tensors = nn.ParameterList([self._internal_params[0]])
        self._layer_bias_vectors = nn.ParameterList([self._internal_params[-1]])
        self._unconditional_param_shapes_ref = [last, 0]
        self._has_bias = self._has_fc_out = self._has_linear_out = True
        self._mask_fc_out = False
        self._is_properly_setup()

    def distillation_targets(self):
        return None

    def forward(self, uncond_input=None, cond_input=None, cond_id=None, weights=None, distilled_params=None,
                condition=None, ret_format="squeezed"):  # fmt: skip
        u, e, (w, b), _ = self._preprocess_forward_args(
            uncond_input=uncond_input, cond_input=cond_input, cond_id=cond_id, weights=weights, ret_format=ret_format
        )
        return self._flat_to_ret_format(u @ w.T + b + e, ret_format)


def assembly_fct(made, uncond, cond):
    return [made[0][0], *uncond]


def flat(hnet, u, **kwargs):
    return hnet(u, ret_format="flattened", **kwargs)


@pytest.fixture
def permuted():
    torch.manual_seed(0)
    return Permuted(3, 2)


@pytest.mark.parametrize("wrap", ["alone", "wrapper", "container", "wrapper of container", "container of wrapper"])
def test_orders_of_its_own(permuted, wrap):
    """Relative: tables assumed the order of ``internal_params``, so that names and weights were those of others."""
    hnet, size = permuted, 2
    if "container" in wrap:
        inner = HPerturbWrapper(permuted, 2, sigma_noise=0.0) if wrap == "container of wrapper" else permuted
        hnet = HContainer([[3], [4]], assembly_fct, [inner], uncond_param_shapes=[[4]], num_cond_embs=2, verbose=False)
        size = 3 if wrap == "container of wrapper" else size
    if wrap.startswith("wrapper"):
        hnet = HPerturbWrapper(hnet, 2, sigma_noise=0.0)
        size = hnet.num_outputs
    u = torch.randn(4, size)
    expected = u[:, :2] @ permuted.internal_params[0].T + permuted.internal_params[3] + permuted.internal_params[1]
    out = flat(hnet, u, cond_id=1)
    torch.testing.assert_close(out[:, :3], expected)
    # Complete lists of weights, in table order and by kind.
    table = kept_params(hnet)
    assert [list(param.shape) for param in table] == hnet.param_shapes
    torch.testing.assert_close(flat(hnet, u, cond_id=1, weights=table), out)
    kinds = {"uncond_weights": hnet.unconditional_params, "cond_weights": hnet.conditional_params}
    torch.testing.assert_close(flat(hnet, u, cond_id=1, weights={"uncond_weights": kinds["uncond_weights"]}), out)
    zeros = {"cond_weights": [torch.zeros_like(param) for param in kinds["cond_weights"]]}
    torch.testing.assert_close(flat(hnet, u, cond_id=1, weights=zeros)[:, :3], expected - permuted.internal_params[1])
    # Meta data, references and views.
    for i, entry in enumerate(hnet.param_shapes_meta):
        assert list(hnet.internal_params[entry["index"]].shape) == hnet.param_shapes[i]
        assert hnet.internal_params_ref[entry["index"]] == i
    for i, ref in enumerate(hnet.unconditional_params_ref):
        assert hnet.unconditional_params[i] is hnet.internal_params[ref]
    assert hnet.layer_weight_tensors[0] is permuted.internal_params[0]
    assert hnet.layer_bias_vectors[0] is permuted.internal_params[-1]
    assert get_conditional_parameters(hnet, 1)[0] is permuted.internal_params[1]
    init_conditional_embeddings(hnet, init_fct=lambda emb, cond_id: emb.fill_(cond_id))
    assert permuted.internal_params[1].tolist() == [1.0] * 3
    assert permuted.internal_params[0].abs().max() != 1
    hnet.custom_init()
    assert not permuted.internal_params[-1].any()
    same = hnet.add_to_uncond_params([torch.zeros_like(param) for param in hnet.unconditional_params])
    assert all(torch.equal(one, two) for one, two in zip(same, hnet.unconditional_params, strict=True))


def test_copies(permuted):
    u = torch.randn(1, 3)
    hnet = HPerturbWrapper(permuted, 2)
    expected = flat(hnet, u, cond_id=0)
    for twin in (copy.deepcopy(hnet), pickle.loads(pickle.dumps(hnet))):
        assert torch.equal(flat(twin, u, cond_id=0), expected)
    other = HPerturbWrapper(Permuted(3, 2), 2)
    other.load_state_dict(hnet.state_dict())
    assert torch.equal(flat(other, u, cond_id=0), expected)


def test_batches_of_a_third_party_network():
    hnet = HPerturbWrapper(OwnHnet([[2, 2], [2]], num_conds=2), sigma_noise=0.5)
    u = torch.randn(1, 6)
    out = flat(hnet, u, cond_id=(0, 1))
    torch.testing.assert_close(out, torch.cat([flat(hnet, u, cond_id=i) for i in (0, 1)]))
    assert [tuple(w.shape) for w in hnet(u, cond_id=[0, 1], ret_format="stacked")] == [(2, 2, 2), (2, 2)]


def test_custom_init_without_names_is_refused_through_a_wrapper():
    """Before: nothing was initialised, silently, alone as well as wrapped."""
    foreign = Foreign([[4]], 3)
    for hnet in (foreign, HPerturbWrapper(foreign, 3)):
        with pytest.raises(UsageError, match=r"custom_init: \w+ keeps 20 weights and does not say what they are"):
            hnet.custom_init()
    # A container has plain tensors of its own: those are initialised, and the part keeps what it does not describe.
    with pytest.raises(UsageError, match="_num_known_conds: is not set"):
        _ = type("Bare", (Foreign,), {"__init__": nn.Module.__init__})().num_known_conds


def test_subclasses_read_private_names():
    """Properties of a subclass of HMLP that read what the reference's HMLP calls its arguments."""

    class Mine(HMLP):
        @property
        def activation(self):
            return self._act_fn

        @property
        def rate(self):
            return self._dropout_rate if self._use_batch_norm else None

        def forward(self, *args, **kwargs):
            u, _e, weights, _ = self._preprocess_forward_args(uncond_input=args[0], **kwargs)
            h = torch.tanh(u @ weights[-4].T + weights[-3])
            return self._flat_to_ret_format(h @ weights[-2].T + weights[-1], kwargs.get("ret_format", "squeezed"))

    hnet = Mine([[2, 2]], uncond_in_size=3, cond_in_size=0, layers=(5,), activation_fn=nn.Tanh(), dropout_rate=0.25)
    assert isinstance(hnet.activation, nn.Tanh)
    assert hnet._dropout_rate == 0.25
    assert hnet.rate is None
    assert HMLP([[2]], use_batch_norm=True)._use_batch_norm is True
    assert HMLP([[2]])._dropout_rate == -1
    u = torch.randn(2, 3)
    torch.testing.assert_close(flat(hnet, u), HMLP.forward(hnet.eval(), u, ret_format="flattened"))
    plain = HMLP([[2]], uncond_in_size=3, cond_in_size=0)
    plain._act_fn = nn.Sigmoid()  # before the class had the name, it would have been ignored
    assert isinstance(plain.activation_fn, nn.Sigmoid)
    assert "_act_fn" not in dict(plain.named_children())


# ---------------------------------------------------------------------- conditions


def plain(**kwargs):
    return HContainer([[2]], lambda h, u, c: u + c, verbose=False, **kwargs)


def test_without_anything_conditional_there_are_no_conditions():
    """Before: ``num_known_conds`` was 1, so that AutoHypernet refused the container."""
    assert plain(uncond_param_shapes=[[2]]).num_known_conds == 0
    assert plain(cond_param_shapes=[[2]], num_cond_embs=3).num_known_conds == 3
    assert HPerturbWrapper(plain(uncond_param_shapes=[[2]]), 0).num_known_conds == 0
    with pytest.warns(BayeshnetWarning, match="num_cond_embs: is 3, but nothing in the container is conditional"):
        assert plain(uncond_param_shapes=[[2]], num_cond_embs=3).num_known_conds == 0
    with pytest.raises(ArgumentError, match="cond_id: 0 does not exist; this hypernetwork knows no conditions"):
        plain(uncond_param_shapes=[[2]])(cond_id=0)
    sizes = {"uncond_in_size": 2, "cond_in_size": 0}
    structured = StructuredHMLP([[2]], [[[2]]], [1], 0, {"layers": ()}, lambda chunks: chunks[0], **sizes)
    for hnet in (HMLP([[2]], **sizes), ChunkedHMLP([[5]], 2, **sizes), structured, plain(uncond_param_shapes=[[2]])):
        assert hnet.num_known_conds == len(hnet.conditional_param_shapes) == 0
        assert hnet.conditional_params is None


# ---------------------------------------------------------------------- mnet=


class ListsOnly:
    """What the documentation of ``mnet=`` asks for, and nothing else."""

    def __init__(self, mnet):
        self.param_shapes, self.param_shapes_meta = mnet.param_shapes, mnet.param_shapes_meta
        self.hyper_shapes_learned = mnet.hyper_shapes_learned
        self.hyper_shapes_learned_ref = mnet.hyper_shapes_learned_ref


@pytest.mark.parametrize("no_weights", [False, True])
def test_mnet_is_any_network_with_the_lists(no_weights):
    """Before: ``mnet: is a ListsOnly; pass a network that implements MainNetInterface``."""
    mnet = MLP(3, 2, hidden_layers=(4,), use_batch_norm=True, no_weights=no_weights)
    assert describe_targets(mnet.param_shapes, ListsOnly(mnet)) == describe_targets(mnet.param_shapes, mnet)
    hnet = HMLP(mnet.param_shapes, uncond_in_size=4, cond_in_size=0)
    hnet.apply_hyperfan_init(mnet=ListsOnly(mnet))
    torch.testing.assert_close(hnet(torch.randn(1, 4))[0], torch.ones(4))  # the scale of batch norm
    broken = ListsOnly(mnet)
    broken.param_shapes_meta = broken.param_shapes_meta[:2]
    with pytest.raises(ArgumentError, match="mnet: its param_shapes_meta has 2 entries for 6 param_shapes"):
        hnet.apply_hyperfan_init(mnet=broken)


def test_mnet_may_be_a_network_of_the_reference():
    pytest.importorskip("hypnettorch")
    with quiet():
        theirs = importlib.import_module("hypnettorch.mnets.mlp").MLP(n_in=3, n_out=2, no_weights=True, verbose=False)
    ours = MLP(3, 2, no_weights=True)
    assert describe_targets(ours.param_shapes, theirs) == describe_targets(ours.param_shapes, ours)


# ---------------------------------------------------------------------- paths

HNETS = {
    "hnet_interface": ["HyperNetInterface"],
    "chunked_deconv_hnet": ["ChunkedHDeconv"],
    "chunked_mlp_hnet": ["ChunkedHMLP"],
    "deconv_hnet": ["HDeconv"],
    "hnet_container": ["HContainer"],
    "hnet_helpers": ["get_conditional_parameters", "init_chunk_embeddings", "init_conditional_embeddings"],
    "hnet_perturbation_wrapper": ["HPerturbWrapper"],
    "mlp_hnet": ["HMLP"],
    "structured_hmlp_examples": ["resnet_chunking", "wrn_chunking"],
    "structured_mlp_hnet": ["StructuredHMLP"],
}
MNETS = {"mnet_interface": ["MainNetInterface"], "mlp": ["MLP"], "resnet": ["ResNet"], "wide_resnet": ["WRN"]}


@pytest.mark.parametrize(("room", "modules"), [(hnets, HNETS), (mnets, MNETS)], ids=["hnets", "mnets"])
def test_documented_paths(room, modules):
    for module, names in modules.items():
        ours = importlib.import_module(f"{room.__name__}.{module}")
        for name in names:
            assert getattr(ours, name) is getattr(room, name)
            assert name in ours.__all__


@pytest.mark.parametrize(("room", "modules"), [(hnets, HNETS), (mnets, MNETS)], ids=["hnets", "mnets"])
def test_the_reference_has_the_same_paths(room, modules):
    pytest.importorskip("hypnettorch")
    for module, names in modules.items():
        with quiet():
            theirs = importlib.import_module(f"{room.__name__.replace('bayeshnet', 'hypnettorch')}.{module}")
        assert all(hasattr(theirs, name) for name in names)

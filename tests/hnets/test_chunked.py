"""Chunked hypernetworks: chunk by chunk they are what their inner network makes, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets import HMLP, ChunkedHDeconv, ChunkedHMLP, HDeconv

from .factories import wake_attention

SHAPES = [[3, 2], [3], [4, 1, 2]]  # 17 weights


def mlp(chunk_emb_size=2, **kwargs):
    kwargs = {"layers": (5,), "activation_fn": torch.tanh, **kwargs}
    return ChunkedHMLP(SHAPES, 5, chunk_emb_size, **kwargs).double()


def deconv(chunk_emb_size=2, **kwargs):
    """Chunks of 5 pixels, with attention that is awake."""
    kwargs = {"num_layers": 3, "num_filters": [3, 2], "kernel_size": [3, (3, 2)], "sa_units": (1,), **kwargs}
    hnet = ChunkedHDeconv(SHAPES, (5, 1), chunk_emb_size, **kwargs).double()
    return wake_attention(hnet)


MAKERS = {"mlp": mlp, "deconv": deconv}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture
def both():
    """Shared chunk embeddings, both kinds of input."""
    return mlp(uncond_in_size=2, cond_in_size=3, num_cond_embs=3)


@pytest.fixture
def conditional():
    """Chunk embeddings per condition, both kinds of input."""
    return mlp(uncond_in_size=2, cond_in_size=3, num_cond_embs=3, cond_chunk_embs=True)


def flat(hnet, *args, **kwargs):
    return hnet(*args, **kwargs, ret_format="flattened")


def noise(batch=4):
    return torch.randn(batch, 2, dtype=torch.float64)


def by_hand(hnet, uncond, cond, chunk_embs):
    """One call of the inner network for each chunk of each sample.

    Args: lists with one vector per sample, or None; for each sample a matrix of chunk embeddings.
    """
    rows = []
    for b, embs in enumerate(chunk_embs):
        row = []
        for emb in embs:
            u = emb if uncond is None else torch.cat([uncond[b], emb])
            row.append(flat(hnet.internal_hnet, u[None], None if cond is None else cond[b][None])[0])
        rows.append(torch.cat(row)[: hnet.num_outputs])
    return torch.stack(rows)


# ---------------------------------------------------------------------- the map


@makers
@pytest.mark.parametrize(("uncond", "cond"), [(2, 0), (0, 3), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"use_spectral_norm": True}, {"use_batch_norm": True}])
def test_chunk_by_chunk(make, uncond, cond, options):
    hnet = make(uncond_in_size=uncond, cond_in_size=cond, num_cond_embs=3 if cond else 1, **options)
    assert (hnet.num_chunks, hnet.chunk_size, hnet.chunk_emb_size) == (4, 5, 2)
    z, ids = noise() if uncond else None, [2, 0, 1, 1]
    if options.get("use_batch_norm"):
        flat(hnet, *([noise(20)] if uncond else []), **({"cond_id": [0, 1, 2, 0] * 5} if cond else {}))  # statistics
    hnet.eval()
    embs = [hnet.get_chunk_emb()] * 4
    if cond:
        inputs = [hnet.get_cond_in_emb(i) for i in ids]
        torch.testing.assert_close(flat(hnet, z, cond_id=ids), by_hand(hnet, z, inputs, embs))
        inputs = torch.randn(4, 3, dtype=torch.float64)
        torch.testing.assert_close(flat(hnet, z, inputs), by_hand(hnet, z, inputs, embs))
    else:
        torch.testing.assert_close(flat(hnet, z), by_hand(hnet, z, None, embs))


@makers
@pytest.mark.parametrize(("uncond", "cond"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_chunk_by_chunk_with_conditional_chunk_embeddings(make, uncond, cond):
    hnet = make(cond_chunk_embs=True, uncond_in_size=uncond, cond_in_size=cond, num_cond_embs=3)
    ids = [2, 0, 1, 1]
    z = noise() if uncond else None
    inputs = [hnet.get_cond_in_emb(i) for i in ids] if cond else None
    embs = [hnet.get_chunk_emb(cond_id=i) for i in ids]
    torch.testing.assert_close(flat(hnet, z, cond_id=ids), by_hand(hnet, z, inputs, embs))
    torch.testing.assert_close(flat(hnet, z, cond_id=2)[0], flat(hnet, z, cond_id=ids)[0])  # one for all samples
    # Embeddings as an argument, alone or beside a conditional input.
    given = torch.randn(4, 4, 2, dtype=torch.float64)
    inputs = torch.randn(4, 3, dtype=torch.float64) if cond else None
    out = flat(hnet, z, inputs, weights={"chunk_embs": given})
    torch.testing.assert_close(out, by_hand(hnet, z, inputs, given))
    # A batch of 1 is broadcast, on whichever side.
    out = flat(hnet, z, inputs, weights={"chunk_embs": given[:1]})
    if z is not None or inputs is not None:
        torch.testing.assert_close(out, by_hand(hnet, z, inputs, [given[0]] * 4))
        first = None if inputs is None else inputs[:1]
        out = flat(hnet, None if z is None else z[:1], first, weights={"chunk_embs": given})
        firsts = [None if t is None else [t[0]] * 4 for t in (z, inputs)]
        torch.testing.assert_close(out, by_hand(hnet, *firsts, given))


@pytest.mark.parametrize(("chunk_size", "num_chunks"), [(1, 17), (5, 4), (16, 2), (17, 1), (40, 1)])
def test_the_surplus_is_dropped(chunk_size, num_chunks):
    hnet = ChunkedHMLP(SHAPES, chunk_size, uncond_in_size=2, cond_in_size=0, layers=(5,)).double()
    assert hnet.num_chunks == num_chunks
    assert hnet.get_chunk_emb().shape == (num_chunks, 8)
    z = noise()
    out = flat(hnet, z)
    assert out.shape == (4, 17)
    torch.testing.assert_close(out, by_hand(hnet, z, None, [hnet.get_chunk_emb()] * 4))
    # Weights of the output layer that make nothing but surplus have no gradient.
    out.square().sum().backward()
    used = min(chunk_size, 17)
    gradient = list(hnet.internal_params)[2].grad
    assert gradient[:used].any(1).all()
    assert not gradient[used:].any()


@makers
def test_batch_norm_sees_all_samples_and_chunks(make):
    hnet = make(uncond_in_size=2, cond_in_size=0, use_batch_norm=True)
    inner = copy.deepcopy(hnet.internal_hnet)
    z = noise()
    rows = torch.cat([torch.cat([u.expand(4, 2), hnet.get_chunk_emb()], dim=1) for u in z])
    torch.testing.assert_close(flat(hnet, z), flat(inner, rows).reshape(4, 20)[:, :17])
    for ours, theirs in zip(hnet.batchnorm_layers, inner.batchnorm_layers, strict=True):
        torch.testing.assert_close(ours.get_stats(), theirs.get_stats())
        assert ours.get_stats()[0].any()
    # `condition` selects one of several sets of statistics.
    for layer in hnet.batchnorm_layers:
        layer.checkpoint_stats()
    with pytest.raises(ArgumentError, match="stats_id: is needed, because this layer has 2 sets"):
        hnet(z)
    hnet(3 * z, condition=1)
    hnet.eval()
    assert not torch.allclose(flat(hnet, z, condition=0), flat(hnet, z, condition=1))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ret_format", ["stacked", "sequential", "squeezed"])
def test_outputs_are_views(batch, ret_format, both):
    out = both(noise(batch), cond_id=1, ret_format=ret_format)
    tensors = [t for part in out for t in (part if isinstance(part, list) else [part])]
    (memory,) = {t.untyped_storage().data_ptr() for t in tensors}
    assert memory
    # One block with the chunks as they were made, surplus included: 20 numbers of 8 bytes per sample.
    assert {t.untyped_storage().nbytes() for t in tensors} == {batch * 20 * 8}


@makers
def test_external_weights_and_chunk_embeddings(make):
    kept = make(cond_chunk_embs=True, uncond_in_size=2, cond_in_size=3, num_cond_embs=2)
    bare = make(
        cond_chunk_embs=True,
        uncond_in_size=2,
        cond_in_size=3,
        num_cond_embs=2,
        no_uncond_weights=True,
        no_cond_weights=True,
    )
    z, cond, embs = noise(), torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 4, 2, dtype=torch.float64)
    uncond = [kept.internal_params[i] for i in kept.unconditional_param_shapes_ref]
    # Conditional weights that nobody picks from need not be given.
    weights = {"uncond_weights": uncond, "chunk_embs": embs}
    out = flat(bare, z, cond, weights=weights)
    torch.testing.assert_close(out, flat(kept, z, cond, weights={"chunk_embs": embs}))
    assert list(weights) == ["uncond_weights", "chunk_embs"]
    with pytest.raises(ArgumentError, match="does not keep .*pass them as weights.'uncond_weights'"):
        bare(z, cond, weights={"chunk_embs": embs})
    with pytest.raises(ArgumentError, match="does not keep .*embedding.*pass them as weights.'cond_weights'"):
        bare(z, cond_id=1, weights={"uncond_weights": uncond})


@makers
def test_no_conditions_of_its_own(make):
    hnet = make(cond_chunk_embs=True, uncond_in_size=2, cond_in_size=0, num_cond_embs=0)
    assert (hnet.num_known_conds, hnet.conditional_param_shapes, hnet.conditional_params) == (0, [], None)
    z, embs = noise(), torch.randn(4, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(flat(hnet, z, weights={"chunk_embs": embs}), by_hand(hnet, z, None, embs))
    with pytest.raises(
        ArgumentError, match=r"cond_id: is None, but the chunk embeddings are conditional; pass weights=.'chunk_embs"
    ):
        hnet(z)
    with pytest.raises(ArgumentError, match="cond_id: 0 does not exist; this hypernetwork knows no conditions"):
        hnet(z, cond_id=0)


# ---------------------------------------------------------------------- table and attributes


@makers
@pytest.mark.parametrize("per_condition", [False, True])
def test_the_table(make, per_condition):
    hnet = make(cond_chunk_embs=per_condition, cond_in_size=3, num_cond_embs=2)
    inner = hnet.internal_hnet
    assert isinstance(inner, HMLP if make is mlp else HDeconv)
    assert hnet.param_shapes == inner.param_shapes + [[4, 2]] * (2 if per_condition else 1)
    for meta in hnet.param_shapes_meta[len(inner.param_shapes) :]:
        assert (meta["name"], meta["layer"], meta["info"]) == ("embedding", 0, "chunk embeddings")
    chunk_records = hnet.param_table[len(inner.param_shapes) :]
    assert [(r.conditional, r.condition) for r in chunk_records] == (
        [(True, 0), (True, 1)] if per_condition else [(False, -1)]
    )
    assert inner.uncond_in_size == 2
    assert (hnet.uncond_in_size, hnet.cond_in_size, hnet.cond_chunk_embs) == (0, 3, per_condition)
    assert hnet.num_known_conds == 2
    assert (hnet.has_fc_out, hnet.mask_fc_out, hnet.has_linear_out) == (inner.has_fc_out, False, True)
    assert (hnet.has_bias, hnet.distillation_targets()) == (True, None)
    assert len(hnet.state_dict()) == len(hnet.param_shapes)


def test_chunk_embeddings_start_standard_normal():
    embs = ChunkedHMLP([[20_000]], 2, chunk_emb_size=10, layers=()).get_chunk_emb().detach()
    # 100 000 draws; standard errors of mean and standard deviation: 0.0032, 0.0022
    assert abs(float(embs.mean())) < 4 * 0.0032
    assert abs(float(embs.std()) - 1) < 4 * 0.0022


def test_get_chunk_emb(both, conditional):
    whole = both.get_chunk_emb()
    assert isinstance(whole, nn.Parameter)
    assert whole is both.internal_params[-1]
    assert torch.equal(both.get_chunk_emb(2), whole[2])
    assert conditional.get_chunk_emb(cond_id=1) is conditional.internal_params[-2]
    assert torch.equal(conditional.get_chunk_emb(3, 1), conditional.internal_params[-2][3])
    assert torch.equal(conditional.get_chunk_emb(torch.tensor(3), torch.tensor(1)), conditional.internal_params[-2][3])
    with torch.no_grad():
        both.get_chunk_emb(2).fill_(7.0)  # a row of the parameter and no copy
    assert (both.get_chunk_emb()[2] == 7).all()


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda h, z: h(z), ArgumentError, r"cond_input: a condition is required; pass cond_id \(0..2\) or cond_input"),
        (lambda h, z: h(cond_id=1), ArgumentError, r"uncond_input: is required; pass a tensor \[batch, 2\]"),
        (
            lambda h, z: h(z[0], cond_id=1),
            ArgumentError,
            r"uncond_input: has shape \[2\]; pass a tensor .* uncond_input\[None\]",
        ),
        (lambda h, z: h(z, z[0]), ArgumentError, r"cond_input: has shape \[2\]; pass a tensor .* cond_input\[None\]"),
        (
            lambda h, z: h(z, z),
            ArgumentError,
            r"cond_input: has shape \[4, 2\]; pass a tensor with 3 as the last dimension",
        ),
        (lambda h, z: h(z, torch.ones(4, 3), 1), ArgumentError, "cond_id: excludes cond_input"),
        (lambda h, z: h(z, cond_id=3), ArgumentError, "cond_id: 3 does not exist; .* conditions 0..2"),
        (lambda h, z: h(z, cond_id=1.0), ArgumentTypeError, "cond_id: is .*; pass an int, a list of ints"),
        (
            lambda h, z: h(z, cond_id=[0, 1]),
            ArgumentError,
            r"batch sizes do not match \(uncond_input has 4, cond_id has 2",
        ),
        (lambda h, z: h(z, cond_id=1, ret_format="list"), ArgumentError, "ret_format: is 'list'; pass one of"),
        (
            lambda h, z: h(z, cond_id=1, weights=[z]),
            ArgumentError,
            "weights: is a list of 1 tensors; pass a list of 8",
        ),
        (
            lambda h, z: h(z, cond_id=1, weights={"chunk_embs": z}),
            ArgumentError,
            r"weights: is a dict with the keys \['chunk_embs'\]; pass at least one of \['uncond_weights', 'cond_",
        ),
        (lambda h, z: h.get_chunk_emb(4), ArgumentError, r"chunk_id: is 4; pass a chunk in 0..3"),
        (lambda h, z: h.get_chunk_emb(-1), ArgumentError, "chunk_id: is -1; pass 0 or more"),
        (lambda h, z: h.get_chunk_emb("1"), ArgumentTypeError, "chunk_id: is '1', a str; pass an int"),
        (lambda h, z: h.get_chunk_emb([0, 1]), ArgumentTypeError, "chunk_id: is .*; pass an int"),
        (
            lambda h, z: h.get_chunk_emb(cond_id=1),
            ArgumentError,
            "cond_id: is .*, but all conditions share the chunk",
        ),
        (lambda h, z: h.get_cond_in_emb(3), ArgumentError, "cond_id: 3 does not exist"),
    ],
)
def test_refused_calls(both, call, error, message):
    with pytest.raises(error, match=message):
        call(both, noise())


COND = torch.ones(4, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {},
            ArgumentError,
            r"conditional; pass cond_id \(0..2\) or weights=.'chunk_embs': [.]{3}., a tensor \[batch, 4, 2\]",
        ),
        ({"cond_input": COND}, ArgumentError, "cond_id: is None, but the chunk embeddings are conditional"),
        ({"chunk_embs": torch.ones(4, 4, 2), "cond_id": 1}, ArgumentError, "weights.'chunk_embs'.: excludes cond_id"),
        ({"chunk_embs": torch.ones(4, 4, 2)}, ArgumentError, "cond_input: a condition is required"),
        (
            {"chunk_embs": torch.ones(4, 3, 2), "cond_input": COND},
            ArgumentError,
            r"weights\['chunk_embs'\]: has shape \[4, 3, 2\]; pass a tensor \[batch, 4, 2\]",
        ),
        (
            {"chunk_embs": torch.ones(4, 2), "cond_input": COND},
            ArgumentError,
            r"has shape \[4, 2\]; pass a tensor \[batch, 4, 2\]",
        ),
        ({"chunk_embs": [1.0], "cond_input": COND}, ArgumentTypeError, "'chunk_embs'.: is a list; pass a tensor"),
        (
            {"chunk_embs": torch.ones(2, 4, 2), "cond_input": COND},
            ArgumentError,
            r"batch sizes do not match \(weights\['chunk_embs'\] has 2, uncond_input has 4, cond_input has 4\)",
        ),
    ],
)
def test_refused_chunk_embeddings(conditional, kwargs, error, message):
    kwargs = dict(kwargs)
    if "chunk_embs" in kwargs:
        kwargs["weights"] = {"chunk_embs": kwargs.pop("chunk_embs")}
    with pytest.raises(error, match=message):
        conditional(noise(), **kwargs)


def test_refused_access(conditional):
    with pytest.raises(ArgumentError, match="cond_id: is None, but each condition has chunk embeddings of its own"):
        conditional.get_chunk_emb(1)
    with pytest.raises(ArgumentError, match="cond_id: 9 does not exist"):
        conditional.get_chunk_emb(1, 9)
    with pytest.raises(ArgumentError, match="cond_id: has 2 conditions; pass one"):
        conditional.get_chunk_emb(1, [0, 1])
    with pytest.raises(UsageError, match="get_chunk_emb: with no_uncond_weights=True .* kept by the caller"):
        mlp(no_uncond_weights=True).get_chunk_emb()
    with pytest.raises(UsageError, match="get_chunk_emb: with no_cond_weights=True"):
        mlp(no_cond_weights=True, cond_chunk_embs=True).get_chunk_emb(cond_id=0)
    with pytest.raises(UsageError, match="get_cond_in_emb: ChunkedHMLP has no conditional input of its own"):
        mlp(cond_chunk_embs=True, cond_in_size=0).get_cond_in_emb(0)

"""The helpers find the conditional parameters and embeddings of every class, and touch nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP, ChunkedHDeconv, ChunkedHMLP, HContainer, HDeconv, HPerturbWrapper, StructuredHMLP
from bayeshnet.hnets.hnet_helpers import (
    get_conditional_parameters,
    init_chunk_embeddings,
    init_conditional_embeddings,
)

from .factories import each, everything
from .foreign import Foreign

CONDS = 3
DECONV = {"num_layers": 2, "num_filters": [2], "kernel_size": 3}


def structured(conditional=False, cond=2, **kwargs):
    options = {"num_cond_embs": CONDS, "cond_chunk_embs": conditional, "cond_in_size": cond, **kwargs}
    return StructuredHMLP([[4]] * 2 + [[3]], [[[4]], [[3]]], [2, 1], [5, 2], {"layers": []}, each, **options)


def chunked(conditional=False, cond=2, **kwargs):
    options = {"num_cond_embs": CONDS, "cond_chunk_embs": conditional, "cond_in_size": cond, "layers": (), **kwargs}
    return ChunkedHMLP([[7]], 4, 3, **options)


def container():
    """Parts of several kinds, plain weights that are called embeddings, and a container inside."""
    inner = HContainer([[7], [2]], everything, [chunked()], cond_param_shapes=[[2]], num_cond_embs=CONDS)
    parts = [HPerturbWrapper(HMLP([[2]], 0, 2, num_cond_embs=CONDS)), structured(conditional=True), inner]
    return HContainer(
        [[2], [4], [4], [3], [7], [2], [2], [2]],
        everything,
        parts,
        [[2]],
        [[2]],
        ["embedding"],
        ["embedding"],
        num_cond_embs=CONDS,
    )


def indices(hnet, wanted):
    """Places in ``internal_params`` of the records that ``wanted`` accepts."""
    internal = [record for record in hnet.param_table if record.internal]
    return [i for i, record in enumerate(internal) if wanted(record)]


# For each network: how many embeddings of conditions, and tensors of chunk embeddings, there are per condition.
NETWORKS = {
    "HMLP": (lambda: HMLP([[5]], cond_in_size=2, num_cond_embs=CONDS), 1, 0),
    "HDeconv": (lambda: HDeconv([[5]], (3, 2), cond_in_size=2, num_cond_embs=CONDS, **DECONV), 1, 0),
    "ChunkedHMLP": (chunked, 1, 0),
    "ChunkedHMLP, conditional": (lambda: chunked(True), 1, 1),
    "ChunkedHMLP, chunks only": (lambda: chunked(True, 0), 0, 1),
    "ChunkedHDeconv": (
        lambda: ChunkedHDeconv([[5]], (2, 1), 3, True, cond_in_size=2, num_cond_embs=CONDS, **DECONV),
        1,
        1,
    ),
    "StructuredHMLP": (structured, 1, 0),
    "StructuredHMLP, conditional": (lambda: structured(True), 1, 2),
    "StructuredHMLP, chunks only": (lambda: structured(True, 0), 0, 2),
    "HContainer": (container, 3, 2),
    "HPerturbWrapper": (lambda: HPerturbWrapper(HPerturbWrapper(chunked(True))), 1, 1),
    "HPerturbWrapper of HContainer": (lambda: HPerturbWrapper(container()), 3, 2),
}
networks = pytest.mark.parametrize(("make", "num_embs", "num_chunk_embs"), NETWORKS.values(), ids=NETWORKS)


def plain(hnet):
    """Plain conditional tensors of the containers."""
    while isinstance(hnet, HPerturbWrapper):
        hnet = hnet.internal_hnet
    return 2 if isinstance(hnet, HContainer) else 0


# ---------------------------------------------------------------------- get_conditional_parameters


@networks
def test_conditional_parameters(make, num_embs, num_chunk_embs):
    hnet = make()
    params = hnet.conditional_params
    taken: list[int] = []
    for cond_id in range(CONDS):
        own = get_conditional_parameters(hnet, cond_id)
        assert len(own) == num_embs + num_chunk_embs + plain(hnet)
        places = [next(i for i, p in enumerate(params) if p is one) for one in own]
        assert places == sorted(places)
        taken += places
    assert sorted(taken) == list(range(len(params)))


def test_they_are_those_that_the_accessors_give():
    hnet = chunked(True)
    one, two = get_conditional_parameters(hnet, 2)
    assert one is hnet.get_cond_in_emb(2)
    assert two is hnet.get_chunk_emb(cond_id=2)
    hnet = structured(True)
    found = get_conditional_parameters(hnet, torch.tensor(1))
    assert [p is q for p, q in zip(found, [hnet.get_cond_in_emb(1), *hnet.get_chunk_embs(1)], strict=True)] == [
        True
    ] * 3


def test_nothing_kept_nothing_found():
    assert get_conditional_parameters(HMLP([[2]], cond_in_size=2, num_cond_embs=2, no_cond_weights=True), 1) == []
    assert get_conditional_parameters(structured(True, no_cond_weights=True), 1) == []
    assert get_conditional_parameters(HMLP([[2]], 2, 0), 0) == []


def test_classes_of_others():
    hnet = Foreign([[2]], 3, num_conds=2)
    assert get_conditional_parameters(hnet, 1)[0] is hnet.internal_params[1]
    hnet._num_known_conds = 1  # two conditional parameters now: whose are they?
    with pytest.raises(ArgumentError, match="hnet: has conditional parameters and does not tell which condition"):
        get_conditional_parameters(hnet, 0)


# ---------------------------------------------------------------------- initialisation


@networks
def test_embeddings_of_conditions(make, num_embs, num_chunk_embs):
    hnet = make()
    before, calls = [p.detach().clone() for p in hnet.internal_params], []

    def init_fct(emb, cond_id):
        calls.append(cond_id)
        nn.init.constant_(emb, 100.0 + cond_id)

    init_conditional_embeddings(hnet, init_fct=init_fct)
    assert sorted(calls) == sorted(list(range(CONDS)) * num_embs)
    changed = [i for i, (p, q) in enumerate(zip(hnet.internal_params, before, strict=True)) if not torch.equal(p, q)]
    assert len(changed) == CONDS * num_embs
    internal = [record for record in hnet.param_table if record.internal]
    for i in changed:
        assert (internal[i].name, internal[i].conditional) == ("embedding", True)
        assert "info" not in internal[i].extra
        assert (hnet.internal_params[i] == 100.0 + internal[i].condition).all()
    if num_embs == 1 and not isinstance(hnet, HPerturbWrapper):
        assert (hnet.get_cond_in_emb(1) == 101.0).all()


@networks
def test_chunk_embeddings(make, num_embs, num_chunk_embs):
    hnet = make()
    before = [p.detach().clone() for p in hnet.internal_params]
    init_chunk_embeddings(hnet, init_fct=lambda emb, chunk_id, cond_id=None: nn.init.constant_(emb, 50.0))
    changed = [i for i, (p, q) in enumerate(zip(hnet.internal_params, before, strict=True)) if not torch.equal(p, q)]
    assert changed == indices(hnet, lambda record: record.extra.get("info") == "chunk embeddings")
    assert all((hnet.internal_params[i] == 50.0).all() for i in changed)


def test_arguments_of_init_fct_for_chunks():
    calls = []

    def init_fct(emb, chunk_id, cond_id):
        calls.append((tuple(emb.shape), chunk_id, cond_id))

    for hnet, expected in [
        (chunked(), [((3,), 0, None), ((3,), 1, None)]),
        (chunked(True, num_cond_embs=2), [((3,), i, cond_id) for cond_id in range(2) for i in range(2)]),
        (structured(), [((2, 5), 0, None), ((1, 2), 1, None)]),
        (structured(True, num_cond_embs=2), [(s, i, c) for c in range(2) for i, s in enumerate([(2, 5), (1, 2)])]),
        (HMLP([[2]]), []),
        (chunked(no_uncond_weights=True), []),
        (
            container(),
            [(s, i, c) for c in range(CONDS) for i, s in enumerate([(2, 5), (1, 2)])]
            + [((3,), 0, None), ((3,), 1, None)],
        ),
    ]:
        calls.clear()
        init_chunk_embeddings(hnet, init_fct=init_fct)
        assert calls == expected
    hnet = chunked(True)
    init_chunk_embeddings(hnet, init_fct=lambda emb, chunk_id, cond_id: emb.fill_(10 * cond_id + chunk_id))
    assert hnet.get_chunk_emb(1, 2).tolist() == [21.0] * 3


@pytest.mark.parametrize("init", [init_conditional_embeddings, init_chunk_embeddings])
def test_normal_distribution(init):
    hnet = ChunkedHMLP([[400]], 1, 50, cond_in_size=20_000, layers=(1,), verbose=False)
    emb = hnet.get_cond_in_emb(0) if init is init_conditional_embeddings else hnet.get_chunk_emb()
    others = [p.detach().clone() for p in hnet.internal_params if p is not emb]
    # 20 000 draws: standard error of the mean 0.0071 and of the standard deviation 0.0050, relative to the latter
    for kwargs, mean, std in [({}, 0.0, 1.0), ({"normal_mean": 3.0, "normal_std": 0.1}, 3.0, 0.1)]:
        init(hnet, **kwargs)
        values = emb.detach()
        assert abs(float(values.mean()) - mean) < 4 * 0.0071 * std
        assert abs(float(values.std()) / std - 1) < 4 * 0.0050
    init(hnet, 2.0, 0.0)
    assert (emb == 2.0).all()
    assert emb.requires_grad
    assert all(
        torch.equal(p, q) for p, q in zip((p for p in hnet.internal_params if p is not emb), others, strict=True)
    )


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("init", [init_conditional_embeddings, init_chunk_embeddings])
def test_refused_arguments(init):
    with pytest.raises(ArgumentTypeError, match=r"hnet: is a Linear; pass a hypernetwork \(HyperNetInterface\)"):
        init(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="normal_std: is -1; pass 0 or more"):
        init(chunked(), normal_std=-1)
    with pytest.raises(ArgumentTypeError, match="init_fct: is an int; pass a function"):
        init(chunked(), init_fct=3)


def test_refused_conditions():
    with pytest.raises(ArgumentTypeError, match="hnet: is an int; pass a hypernetwork"):
        get_conditional_parameters(3, 0)
    for wrong in (CONDS, -1):
        with pytest.raises(ArgumentError, match=f"cond_id: {wrong} does not exist; .* conditions 0..2"):
            get_conditional_parameters(container(), wrong)
    with pytest.raises(ArgumentError, match="cond_id: has 2 conditions; pass one"):
        get_conditional_parameters(container(), [0, 1])
    with pytest.raises(ArgumentTypeError, match="cond_id: is .*; pass an int"):
        get_conditional_parameters(container(), "0")

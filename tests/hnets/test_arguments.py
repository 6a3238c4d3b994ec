"""What ``forward`` of every hypernetwork accepts, and what it says about the rest."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP, HPerturbWrapper


@pytest.fixture
def hnet():
    return HMLP([[3, 2], [3]], uncond_in_size=2, cond_in_size=4, layers=(5,), num_cond_embs=3)


@pytest.fixture
def z():
    return torch.randn(2, 2)


# ---------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    "cond_id",
    [[2, 0], (2, 0), np.array([2, 0]), torch.tensor([2, 0]), torch.tensor([2, 0], dtype=torch.uint8), [np.int64(2), 0]],
    ids=lambda value: type(value).__name__,
)
def test_several_ids(hnet, z, cond_id):
    embs = torch.stack([hnet.get_cond_in_emb(2), hnet.get_cond_in_emb(0)])
    out = hnet(z, cond_id=cond_id, ret_format="flattened")
    assert torch.equal(out, hnet(z, cond_input=embs, ret_format="flattened"))


@pytest.mark.parametrize("cond_id", [1, [1], np.int32(1), np.array(1), torch.tensor(1), torch.tensor([1])])
def test_one_id_serves_all_rows(hnet, z, cond_id):
    expected = hnet(z, cond_id=[1, 1], ret_format="flattened")
    assert torch.equal(hnet(z, cond_id=cond_id, ret_format="flattened"), expected)


def test_one_row_serves_all_ids(hnet, z):
    out = hnet(z[:1], cond_id=[0, 1, 2], ret_format="flattened")
    assert torch.equal(out, hnet(z[:1].expand(3, -1), cond_id=[0, 1, 2], ret_format="flattened"))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"cond_id": 3}, ArgumentError, r"cond_id: 3 does not exist; .* conditions 0\.\.2"),
        ({"cond_id": -1}, ArgumentError, "cond_id: -1 does not exist"),
        ({"cond_id": [0, 7]}, ArgumentError, "cond_id: 7 does not exist"),
        ({"cond_id": []}, ArgumentError, "cond_id: is empty; pass at least one"),
        ({"cond_id": torch.tensor([[0, 1]])}, ArgumentError, r"cond_id: has shape \[1, 2\]"),
        ({"cond_id": 1.0}, ArgumentTypeError, "cond_id: is 1.0, a float; pass an int, a list of ints"),
        ({"cond_id": torch.tensor([1.0])}, ArgumentTypeError, "cond_id: is .*; pass an int"),
        ({"cond_id": "0"}, ArgumentTypeError, "cond_id: is .*; pass an int"),
        ({"cond_id": True}, ArgumentTypeError, "cond_id: is .*; pass an int"),
        ({"cond_id": torch.tensor([True])}, ArgumentTypeError, "cond_id: is .*; pass an int"),
        ({"cond_id": 0, "cond_input": torch.ones(2, 4)}, ArgumentError, "cond_id: excludes cond_input"),
        ({}, ArgumentError, r"cond_input: a condition is required; pass cond_id \(0\.\.2\) or cond_input"),
        (
            {"cond_input": torch.ones(4)},
            ArgumentError,
            r"cond_input: has shape \[4\].*\[batch, 4\].*cond_input\[None\]",
        ),
        (
            {"cond_input": torch.ones(1, 5)},
            ArgumentError,
            r"cond_input: has shape \[1, 5\]; pass a tensor with 4 as the last",
        ),
        (
            {"cond_input": torch.ones(1, 4, dtype=int)},
            ArgumentTypeError,
            "cond_input: has dtype torch.int64; pass a floating-point tensor",
        ),
        ({"cond_input": [[1.0] * 4]}, ArgumentTypeError, "cond_input: is a list; pass a tensor"),
        ({"cond_id": [0, 1, 2]}, ArgumentError, "batch sizes do not match .uncond_input has 2, cond_id has 3."),
        ({"cond_input": torch.ones(3, 4)}, ArgumentError, "uncond_input has 2, cond_input has 3"),
        ({"cond_id": 0, "ret_format": "list"}, ArgumentError, "ret_format: is 'list'; pass one of 'flattened'"),
        ({"cond_id": 0, "ret_format": None}, ArgumentError, "ret_format: is None; pass one of"),
    ],
)
def test_refused_conditions_and_formats(hnet, z, kwargs, error, message):
    with pytest.raises(error, match=message):
        hnet(z, **kwargs)


@pytest.mark.parametrize(
    ("uncond_input", "error", "message"),
    [
        (None, ArgumentError, r"uncond_input: is required; pass a tensor \[batch, 2\]"),
        (torch.ones(2), ArgumentError, r"uncond_input: has shape \[2\].*uncond_input\[None\]"),
        (torch.ones(1, 1, 2), ArgumentError, r"uncond_input: has shape \[1, 1, 2\]; pass a tensor \[batch, 2\]"),
        (torch.ones(1, 3), ArgumentError, r"uncond_input: has shape \[1, 3\]"),
        (np.ones((1, 2)), ArgumentTypeError, "uncond_input: is a ndarray; pass a tensor .see torch.as_tensor"),
    ],
)
def test_refused_inputs(hnet, uncond_input, error, message):
    with pytest.raises(error, match=message):
        hnet(uncond_input, cond_id=0)


def test_inputs_that_the_network_does_not_take():
    noise_only = HMLP([[3]], uncond_in_size=2, cond_in_size=0)
    with pytest.raises(ArgumentError, match="cond_id: 0 does not exist; this hypernetwork knows no conditions"):
        noise_only(torch.ones(1, 2), cond_id=0)
    with pytest.raises(ArgumentError, match="cond_input: was given, but this hypernetwork takes none"):
        noise_only(torch.ones(1, 2), cond_input=torch.ones(1, 2))
    with pytest.raises(ArgumentError, match="uncond_input: was given, but this hypernetwork takes none"):
        HMLP([[3]])(torch.ones(1, 2), cond_id=0)
    with pytest.raises(
        ArgumentError, match=r"cond_input: a condition is required; pass cond_input, a tensor \[batch, 8\]"
    ):
        HMLP([[3]], num_cond_embs=0)()


def test_an_empty_batch(hnet):
    assert hnet(torch.ones(0, 2), cond_id=0, ret_format="flattened").shape == (0, 9)
    assert hnet(torch.ones(0, 2), cond_id=0) == []


# ---------------------------------------------------------------------- external weights


def external(hnet):
    return [torch.randn(shape) for shape in hnet.param_shapes]


@pytest.mark.parametrize("no_uncond", [False, True])
@pytest.mark.parametrize("no_cond", [False, True])
def test_all_combinations(z, no_uncond, no_cond):
    kept = HMLP([[3]], 2, 4, (5,), num_cond_embs=2)
    hnet = HMLP([[3]], 2, 4, (5,), num_cond_embs=2, no_uncond_weights=no_uncond, no_cond_weights=no_cond)
    hnet.load_state_dict(
        {f"_internal_params.{i}": kept.internal_params[r] for i, r in enumerate(hnet.internal_params_ref or [])}
    )
    full = list(kept.internal_params)
    assert hnet.hyper_shapes_learned == ([[4]] * 2 * no_cond + [[5, 6], [5], [3, 5], [3]] * no_uncond or None)
    weights = None if hnet.hyper_shapes_learned is None else [full[i] for i in hnet.hyper_shapes_learned_ref]
    expected = kept(z, cond_id=[1, 0], ret_format="flattened")
    assert torch.equal(hnet(z, cond_id=[1, 0], weights=weights, ret_format="flattened"), expected)


def test_weights_replace_internal_ones(hnet, z):
    given = external(hnet)
    out = hnet(z, cond_id=1, weights={"cond_weights": given[:3]}, ret_format="flattened")
    assert torch.equal(out, hnet(z, cond_input=given[1][None], ret_format="flattened"))
    out = hnet(z, cond_id=1, weights={"uncond_weights": given[3:]}, ret_format="flattened")
    mixed = [*hnet.conditional_params, *given[3:]]
    assert torch.equal(out, hnet(z, cond_id=1, weights=mixed, ret_format="flattened"))
    parameters = torch.nn.ParameterList(given)
    assert torch.equal(hnet(z, cond_id=1, weights=parameters)[0][0], hnet(z, cond_id=1, weights=given)[0][0])


def test_missing_weights_are_named(z):
    hnet = HMLP([[3]], 2, 4, (), num_cond_embs=1, no_uncond_weights=True, no_cond_weights=True)
    with pytest.raises(
        ArgumentError, match=r"does not keep 0\.embedding \[4\], 1\.weight \[3, 6\], 1\.bias \[3\]; pass"
    ):
        hnet(z, cond_id=0)
    full = external(hnet)
    with pytest.raises(
        ArgumentError, match=r"1\.weight \[3, 6\], 1\.bias \[3\]; pass them as weights\['uncond_weights'\]"
    ):
        hnet(z, cond_id=0, weights={"cond_weights": full[:1]})
    with pytest.raises(ArgumentError, match=r"0\.embedding \[4\]; pass them as weights\['cond_weights'\]"):
        hnet(z, cond_id=0, weights={"uncond_weights": full[1:]})
    wrapped = HPerturbWrapper(hnet, noise="independent")
    with pytest.raises(ArgumentError, match=r"does not keep 0\.embedding"):
        wrapped(torch.randn(1, 5), cond_id=0)


def test_embeddings_are_not_missed_where_the_input_is_given(z):
    hnet = HMLP([[3]], 2, 4, (), num_cond_embs=2, no_cond_weights=True)
    assert hnet(z, cond_input=torch.ones(1, 4), ret_format="flattened").shape == (2, 3)


def test_a_long_list_of_missing_weights_is_cut():
    hnet = HMLP([[3]], 2, 4, num_cond_embs=20, no_cond_weights=True)
    with pytest.raises(ArgumentError, match=r"0\.embedding_8 \[4\] and 12 more; pass"):
        hnet(torch.ones(1, 2), cond_id=0)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([], ArgumentError, r"weights: is a list of 0 tensors; pass a list of 7 tensors \(param_shapes\)"),
        ({}, ArgumentError, r"weights: is a dict with the keys \[\]; .*\['uncond_weights', 'cond_weights'\]"),
        ({"weights": []}, ArgumentError, r"weights: is a dict with the keys \['weights'\]"),
        ({"chunk_embs": []}, ArgumentError, r"weights: is a dict with the keys \['chunk_embs'\]"),
        ({"cond_weights": []}, ArgumentError, r"weights\['cond_weights'\]: has 0 tensors; pass the complete list of 3"),
        (
            {"cond_weights": torch.ones(3, 4)},
            ArgumentTypeError,
            r"weights\['cond_weights'\]: is a Tensor; pass a list of tensors",
        ),
        (
            {"cond_weights": [torch.ones(4)] * 2 + [torch.ones(3)]},
            ArgumentError,
            r"\[2\]: has shape \[3\]; pass the tensor 0\.emb",
        ),
        ([torch.ones(4)] * 7, ArgumentError, r"weights\[3\]: has shape \[4\]; pass the tensor 1\.weight \[5, 6\]"),
        ([1.0] * 7, ArgumentTypeError, r"weights\[0\]: is a float; pass a tensor"),
        (torch.ones(7), ArgumentTypeError, "weights: is a Tensor; pass a list of tensors or a dict"),
        ("weights", ArgumentTypeError, "weights: is a str; pass a list of tensors or a dict"),
        (3, ArgumentTypeError, "weights: is an int; pass a list of tensors or a dict"),
    ],
)
def test_refused_weights(hnet, z, weights, error, message):
    with pytest.raises(error, match=message):
        hnet(z, cond_id=0, weights=weights)


def test_a_list_of_wrong_length_names_both_lengths(z):
    hnet = HMLP([[3]], 2, 4, (), num_cond_embs=1, no_cond_weights=True)
    with pytest.raises(
        ArgumentError, match=r"3 tensors .param_shapes. or 1 .hyper_shapes_learned: 0\.embedding \[4\]."
    ):
        hnet(z, cond_id=0, weights=[torch.ones(4)] * 2)

"""ChunkedHMLP: what it keeps, logs and refuses."""

from __future__ import annotations

import logging

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning
from bayeshnet.hnets import ChunkedHMLP

SHAPES = [[3, 2], [3], [4, 1, 2]]  # 17 weights


def mlp(chunk_emb_size=2, **kwargs):
    kwargs = {"layers": (5,), "activation_fn": torch.tanh, **kwargs}
    return ChunkedHMLP(SHAPES, 5, chunk_emb_size, **kwargs).double()


def test_without_conditional_input_the_inner_network_keeps_no_embeddings():
    hnet = mlp(cond_chunk_embs=True, cond_in_size=0, num_cond_embs=3)
    assert hnet.internal_hnet.num_known_conds == 0
    assert hnet.num_known_conds == 3
    assert hnet.conditional_param_shapes == [[4, 2]] * 3
    with pytest.warns(BayeshnetWarning, match="num_cond_embs: is 3, but cond_in_size is 0, so no embeddings are kept"):
        hnet = mlp(uncond_in_size=2, cond_in_size=0, num_cond_embs=3)
    assert hnet.num_known_conds == 0


def test_it_logs_at_info_if_verbose(caplog, capsys):
    with caplog.at_level(logging.INFO):
        ChunkedHMLP(SHAPES, 5, layers=())
        ChunkedHMLP(SHAPES, 5, layers=(), verbose=False)
    assert [r.message for r in caplog.records] == ["Created ChunkedHMLP: 17 outputs from 4 chunks of 5, 125 weights."]
    assert capsys.readouterr() == ("", "")


def test_empty_and_0d_targets():
    hnet = ChunkedHMLP([[], [0, 3], [2]], 2, uncond_in_size=2, cond_in_size=0, layers=())
    assert [tuple(t.shape) for t in hnet(torch.randn(1, 2))] == [(), (0, 3), (2,)]
    assert ChunkedHMLP([[0]], 2, layers=())(cond_id=0, ret_format="flattened").shape == (1, 0)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"chunk_size": 0}, ArgumentError, "chunk_size: is 0; give the number of weights in a chunk, at least 1"),
        ({"chunk_size": -1}, ArgumentError, "chunk_size: is -1; pass 0 or more"),
        ({"chunk_size": 2.5}, ArgumentTypeError, "chunk_size: is 2.5, a float; pass an int"),
        ({"chunk_size": "5"}, ArgumentTypeError, "chunk_size: is '5', a str; pass an int"),
        ({"chunk_emb_size": 0}, ArgumentError, "chunk_emb_size: is 0, so that all chunks would be the same"),
        ({"chunk_emb_size": 1.5}, ArgumentTypeError, "chunk_emb_size: is .*; pass an int"),
        (
            {"cond_in_size": 0},
            ArgumentError,
            "uncond_in_size: and cond_in_size are both 0; .* use cond_chunk_embs=True",
        ),
        ({"cond_in_size": -1}, ArgumentError, "cond_in_size: is -1; pass 0 or more"),
        ({"num_cond_embs": -1}, ArgumentError, "num_cond_embs: is -1; pass 0 or more"),
        ({"num_cond_embs": 2.0}, ArgumentTypeError, "num_cond_embs: is .*; pass an int"),
        ({"target_shapes": [3, 2]}, ArgumentTypeError, r"target_shapes: is \[3, 2\], a list; pass a list of shapes"),
        ({"target_shapes": []}, ArgumentError, "target_shapes: is empty"),
        ({"layers": (5, 0)}, ArgumentError, r"layers: is \[5, 0\], with a width below 1; pass"),
        ({"dropout_rate": 2}, ArgumentError, "dropout_rate: is 2; pass a number in"),
    ],
)
def test_refused_configurations(kwargs, error, message):
    with pytest.raises(error, match=message):
        ChunkedHMLP(**{"target_shapes": SHAPES, "chunk_size": 5, **kwargs})

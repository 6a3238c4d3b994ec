"""Arguments, inputs, weights and conditions that an MLP refuses."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets import MLP, batched_forward


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_in": 0}, r"n_in, hidden_layers, n_out: are \[0, 10, 10, 1\]"),
        ({"hidden_layers": (3, 0)}, "pass sizes of at least 1"),
        ({"dropout_rate": 2}, "dropout_rate: is 2"),
        ({"use_batch_norm": True, "distill_bn_stats": True, "bn_track_stats": False}, "distill_bn_stats: needs"),
        (
            {"init_weights": [torch.ones(1)]},
            r"init_weights: have shapes \[\[1\]\]; the internal parameters have \[\[10",
        ),
        ({"no_weights": True, "init_weights": []}, "init_weights"),
        ({"use_context_mod": True, "context_mod_gain_offset": True, "context_mod_gain_softplus": True}, "exclude"),
    ],
)
def test_constructor_errors(options, match):
    with pytest.raises(ArgumentError, match=match):
        MLP(**options)


@pytest.mark.parametrize("options", [{}, {"use_context_mod": True, "context_mod_inputs": True}, {"out_fn": torch.tanh}])
def test_one_sample_and_more_dimensions(options):
    """Before both were refused, ``x: has shape [3]; this network takes [B, 3]``; the reference takes them."""
    net, x = MLP(3, 2, **options), torch.randn(4, 5, 3)
    expected = net(x.flatten(0, 1))
    for rows, shape in ((x, (4, 5)), (x[0, 0], ())):
        out, other = net(rows), expected
        pairs = zip(out, other, strict=True) if isinstance(out, tuple) else [(out, other)]
        for one, two in pairs:
            assert one.shape == (*shape, 2)
            torch.testing.assert_close(one, two.view(4, 5, 2) if shape else two[0])
    weights = torch.randn(6, net.num_params)
    one = batched_forward(net, weights, x[0, 0])
    many = batched_forward(net, weights, x[0, :1])
    for a, b in zip(*((out if isinstance(out, tuple) else (out,)) for out in (one, many)), strict=True):
        torch.testing.assert_close(a, b[:, 0])


def test_input_errors():
    net = MLP(3, 2)
    with pytest.raises(
        ArgumentError, match=r"x: has shape \[4\]; this network takes \[B, 3\], or \[3\] for one sample"
    ):
        net(torch.randn(4))
    with pytest.raises(ArgumentError, match=r"x: has shape \[\]"):
        net(torch.tensor(1.0))
    with pytest.raises(ArgumentError, match=r"with batch norm .* a batch \[B, 3\]: pass x.reshape\(-1, 3\)"):
        MLP(3, 2, use_batch_norm=True)(torch.randn(3))
    with pytest.raises(ArgumentError, match=r"For scalar inputs pass x.unsqueeze\(1\)"):
        MLP()(torch.randn(5))
    with pytest.raises(ArgumentError, match=r"x: has shape \[5, 2\]"):
        net(torch.randn(5, 2))
    with pytest.raises(ArgumentTypeError, match="x: is a list"):
        net([[1.0, 2.0, 3.0]])


def test_weight_errors():
    x = torch.randn(5, 3)
    options = {"n_in": 3, "n_out": 2, "hidden_layers": (), "use_context_mod": True}
    with pytest.raises(
        ArgumentError, match=r"without weights of its own; pass tensors of the shapes \[\[2, 3\], \[2\]\]"
    ):
        MLP(**options, no_weights=True)(x)
    with pytest.raises(ArgumentError, match=r"without gains and shifts of its own; .* \{'mod_weights': \[...\]\}"):
        MLP(**options, context_mod_no_weights=True)(x)
    with pytest.raises(ArgumentError, match="without gains"):
        MLP(**options, context_mod_no_weights=True)(
            x, weights={"internal_weights": [torch.randn(2, 3), torch.randn(2)]}
        )
    net = MLP(**options)
    with pytest.raises(
        ArgumentError, match=r"weights: 1 tensors were given; accepted are 4 .* or 2 \(gains and shifts\)"
    ):
        net(x, weights=[torch.randn(2, 3)])
    with pytest.raises(ArgumentError, match=r"has the keys \['w'\]; accepted are 'internal_weights'"):
        net(x, weights={"w": []})
    with pytest.raises(ArgumentError, match=r"weights\['internal_weights'\]: 1 tensors were given"):
        net(x, weights={"internal_weights": [torch.randn(2)]})
    with pytest.raises(ArgumentError, match=r"weight 0 of .* has shape \[3, 2\], expected \[2, 3\]"):
        net(x, weights={"internal_weights": [torch.randn(3, 2), torch.randn(2)]})
    with pytest.raises(ArgumentError, match=r"the gain has shape \[3\]"):
        net(x, weights=[torch.randn(3), torch.randn(2)])
    with pytest.raises(ArgumentTypeError, match="flatten_params"):
        net(x, weights=torch.randn(10))
    with pytest.raises(ArgumentError, match="no context modulation"):
        MLP(3, 2)(x, weights={"mod_weights": [torch.ones(3)]})


def test_condition_errors():
    x = torch.randn(5, 3)
    net = MLP(3, 2, (4,), use_batch_norm=True, use_context_mod=True)
    with pytest.raises(ArgumentError, match=r"stats_id: 3 is not in 0\.\.0"):
        net(x, condition=3)
    with pytest.raises(ArgumentError, match=r"has the keys \['task'\]; accepted are 'bn_stats_id'"):
        net(x, condition={"task": 1})
    with pytest.raises(ArgumentTypeError, match="condition: is a str"):
        net(x, condition="a")
    with pytest.raises(ArgumentError, match=r"ckpt_id: 2 is not in 0\.\.0"):
        net(x, condition={"cmod_ckpt_id": 2})
    mods = [torch.ones(shape) for shape in net.param_shapes[:4]]
    with pytest.raises(ArgumentError, match="pass one of the two"):
        net(x, weights=mods, condition={"cmod_ckpt_id": 0})
    with pytest.raises(ArgumentError, match="'cmod_ckpt_id' needs a network with context modulation"):
        MLP(3, 2)(x, condition={"cmod_ckpt_id": 0})
    assert MLP(3, 2)(x, condition=5).shape == (5, 2)  # nothing that it could select
    with pytest.raises(ArgumentError, match="distilled_params: this network has no statistics"):
        net(x, distilled_params=[])
    net = MLP(3, 2, (4,), use_batch_norm=True, distill_bn_stats=True)
    with pytest.raises(ArgumentError, match=r"distilled_params: have shapes \[\[3\]\]; expected \[\[4\], \[4\]\]"):
        net(x, distilled_params=[torch.ones(3)])

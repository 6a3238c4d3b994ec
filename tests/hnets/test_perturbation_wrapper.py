"""The perturbation wrapper: its sampling equations, its handlers, and that it is otherwise what it wraps."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import copy
import logging
import math
import pickle

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets import HMLP, HPerturbWrapper

SHAPES = [[3, 2], [3]]  # nine weights


@pytest.fixture
def inner():
    return HMLP(SHAPES, 4, 0, (5,), activation_fn=torch.tanh)


@pytest.fixture
def conditional():
    return HMLP(SHAPES, 4, 3, (5,), num_cond_embs=3)


def flat(hnet, *args, **kwargs):
    return hnet(*args, **kwargs, ret_format="flattened")


# ---------------------------------------------------------------------- equations


@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("learn_sigma", [None, "per_weight"])
def test_noise_is_drawn_in_one_call(inner, noise, learn_sigma):
    hnet = HPerturbWrapper(inner, noise=noise, learn_sigma=learn_sigma).double()
    torch.manual_seed(3)
    drawn = hnet.draw_noise(6)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.randn(6, 9 if noise == "shared" else 13, dtype=torch.float64))
    assert not drawn.requires_grad
    assert flat(hnet, drawn).shape == (6, 9)
    handled = HPerturbWrapper(inner, output_handler=lambda out, **_: out)
    with pytest.raises(UsageError, match=r"draw_noise: the wrapper has handlers"):
        handled.draw_noise(6)


@pytest.mark.parametrize("sigma", [0.0, 0.02, 1.5])
def test_shared_noise(inner, sigma):
    hnet, z = HPerturbWrapper(inner, 4, sigma), torch.randn(6, 9)
    torch.testing.assert_close(flat(hnet, z), flat(inner, z[:, :4]) + sigma * z)
    assert (hnet.uncond_in_size, hnet.hnet_uncond_in_size, hnet.noise) == (9, 4, "shared")
    assert hnet.sigma.shape == ()
    assert not hnet.sigma.requires_grad


def test_independent_noise(inner):
    hnet, z = HPerturbWrapper(inner, sigma_noise=0.3, noise="independent"), torch.randn(6, 13)
    torch.testing.assert_close(flat(hnet, z), flat(inner, z[:, :4]) + 0.3 * z[:, 4:])
    assert (hnet.uncond_in_size, hnet.hnet_uncond_in_size, hnet.noise) == (13, 4, "independent")


@pytest.mark.parametrize(("kind", "shape"), [("scalar", ()), ("per_weight", (9,))])
def test_learned_scale(inner, kind, shape):
    hnet, z = HPerturbWrapper(inner, sigma_noise=0.1, learn_sigma=kind), torch.randn(6, 9)
    assert hnet.log_sigma_noise.shape == shape
    torch.testing.assert_close(hnet.sigma, torch.full(shape, 0.1))
    with torch.no_grad():
        hnet.log_sigma_noise.copy_(torch.randn(shape))
    out = flat(hnet, z)
    torch.testing.assert_close(out, flat(inner, z[:, :4]) + hnet.log_sigma_noise.exp() * z)
    (gradient,) = torch.autograd.grad(out.sum(), hnet.log_sigma_noise)
    torch.testing.assert_close(gradient, (hnet.sigma * z).sum(0) if shape else (hnet.sigma * z).sum())
    assert "log_sigma_noise" in dict(hnet.named_parameters())
    assert hnet.num_params == inner.num_params, "the scale is no part of the table"


def test_the_default_size_is_that_of_the_wrapped_network(inner):
    assert HPerturbWrapper(inner).hnet_uncond_in_size == 4


def test_a_conditional_network_without_noise_input():
    inner = HMLP(SHAPES, 0, 3, (5,), num_cond_embs=2)
    hnet, z = HPerturbWrapper(inner, sigma_noise=0.5), torch.randn(6, 9)
    torch.testing.assert_close(flat(hnet, z, cond_id=1), flat(inner, cond_id=1) + 0.5 * z)
    torch.testing.assert_close(flat(hnet, z[:1], cond_id=[0, 1]), flat(inner, cond_id=[0, 1]) + 0.5 * z[:1])


def test_broadcasting(conditional):
    hnet, z = HPerturbWrapper(conditional, sigma_noise=0.5), torch.randn(3, 9)
    ids = [0, 1, 2]
    torch.testing.assert_close(flat(hnet, z[:1], cond_id=ids), flat(hnet, z[:1].expand(3, -1), cond_id=ids))
    torch.testing.assert_close(flat(hnet, z, cond_id=1), flat(hnet, z, cond_id=[1, 1, 1]))
    cond = torch.randn(3, 3)
    torch.testing.assert_close(flat(hnet, z[:1], cond), flat(hnet, z[:1].expand(3, -1), cond))
    torch.testing.assert_close(flat(hnet, z, cond[:1]), flat(hnet, z, cond[:1].expand(3, -1)))
    with pytest.raises(ArgumentError, match="batch sizes do not match"):
        hnet(z[:2], cond_id=ids)


@pytest.mark.parametrize("inner_noise", ["shared", "independent"])
@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_a_wrapper_in_a_wrapper(inner, inner_noise, noise):
    first = HPerturbWrapper(inner, sigma_noise=0.5, noise=inner_noise)
    if inner_noise == "independent" and noise == "shared":
        with pytest.raises(ArgumentError, match="13 is more than the 9 weights"):
            HPerturbWrapper(first, noise=noise)
        return
    second = HPerturbWrapper(first, sigma_noise=0.1, noise=noise)
    n = first.uncond_in_size
    z = torch.randn(6, second.uncond_in_size)
    extra = z if noise == "shared" else z[:, n:]
    torch.testing.assert_close(flat(second, z), flat(first, z[:, :n]) + 0.1 * extra)
    assert all("_hnet._hnet." in key or "_sigma_noise" in key for key in second.state_dict())


# ---------------------------------------------------------------------- handlers


def test_the_examples_of_the_api_document(inner):
    z = torch.randn(6, 9)

    def first_entries(uncond_input=None, cond_input=None, cond_id=None):
        return uncond_input[:, :4], cond_input, cond_id

    hnet = HPerturbWrapper(inner, input_handler=first_entries, sigma_noise=0.3)
    torch.testing.assert_close(flat(hnet, z), flat(HPerturbWrapper(inner, 4, 0.3), z))
    assert hnet.hnet_uncond_in_size is None
    assert hnet.uncond_in_size is None

    def independent(hnet_out_int, uncond_input=None, cond_input=None, cond_id=None):
        return hnet_out_int + uncond_input[:, 4:]

    hnet = HPerturbWrapper(inner, input_handler=first_entries, output_handler=independent)
    z = torch.randn(6, 13)
    torch.testing.assert_close(flat(hnet, z), flat(inner, z[:, :4]) + z[:, 4:])
    assert [t.shape for t in hnet(z[:1])] == [(3, 2), (3,)]
    assert hnet.input_handler is first_entries
    assert hnet.output_handler is independent


def test_handlers_get_the_original_arguments(conditional):
    seen = []

    def input_handler(**kwargs):
        seen.append(kwargs)
        return kwargs["uncond_input"][:, :4], None, kwargs["cond_id"] - 10

    def output_handler(out, **kwargs):
        seen.append(kwargs)
        return 2 * out

    hnet = HPerturbWrapper(conditional, input_handler=input_handler, output_handler=output_handler)
    z = torch.randn(2, 7)
    out = flat(hnet, z, cond_id=12)  # what an id means is up to the handler
    torch.testing.assert_close(out, 2 * flat(conditional, z[:, :4], cond_id=2))
    for kwargs in seen:
        assert kwargs["uncond_input"] is z
        assert kwargs["cond_input"] is None
        assert kwargs["cond_id"] == 12
    with pytest.raises(ArgumentError, match="cond_id: 3 does not exist"):
        hnet(z, cond_id=13)


def test_an_output_handler_alone_takes_the_leading_entries(inner):
    hnet = HPerturbWrapper(inner, output_handler=lambda out, **_: -out)
    z = torch.randn(6, 5)
    torch.testing.assert_close(flat(hnet, z), -flat(inner, z[:, :4]))
    with pytest.raises(ArgumentError, match=r"uncond_input: has shape \[6, 3\]; pass at least \[batch, 4\]"):
        hnet(z[:, :3])
    with pytest.raises(ArgumentError, match="uncond_input: is None; pass"):
        hnet()


def test_an_input_handler_with_independent_noise_uses_the_last_entries(inner):
    hnet = HPerturbWrapper(
        inner, 99, 0.5, input_handler=lambda **kw: (kw["uncond_input"][:, :4], None, None), noise="independent"
    )
    z = torch.randn(6, 15)
    torch.testing.assert_close(flat(hnet, z), flat(inner, z[:, :4]) + 0.5 * z[:, 6:])
    with pytest.raises(ArgumentError, match=r"uncond_input: has shape \[6, 8\]; pass noise for 9 weights"):
        hnet(z[:, :8])


def test_handlers_that_return_something_else(inner):
    z = torch.randn(2, 9)
    for wrong, got in [(lambda out, **_: None, "NoneType"), (lambda out, **_: out[:, 1:], r"shape \[2, 8\]")]:
        with pytest.raises(
            ArgumentError, match=rf"output_handler: returned (an? )?{got}; let it return a tensor \[batch, 9\]"
        ):
            HPerturbWrapper(inner, output_handler=wrong)(z)
    for wrong, got in [(lambda **_: z[:, :4], "Tensor"), (lambda **_: (z[:, :4], None), "a tuple of 2")]:
        with pytest.raises(
            ArgumentError, match=f"input_handler: returned (an? )?{got}; .*uncond_input, cond_input, cond_id"
        ):
            HPerturbWrapper(inner, input_handler=wrong)(z)
    with pytest.raises(ArgumentError, match="uncond_input: is None; pass a tensor with the noise on the 9 weights"):
        HPerturbWrapper(inner, input_handler=lambda **_: (z[:, :4], None, None))()


def test_functions_are_pickled_and_lambdas_are_not(inner):
    hnet = HPerturbWrapper(inner, output_handler=double)
    z = torch.randn(2, 4)
    assert torch.equal(flat(pickle.loads(pickle.dumps(hnet)), z), flat(hnet, z))
    assert torch.equal(flat(copy.deepcopy(hnet), z), flat(hnet, z))


def double(out, **_):
    return 2 * out


# ---------------------------------------------------------------------- what is wrapped


def test_the_table_is_that_of_the_wrapped_network(conditional):
    hnet = HPerturbWrapper(conditional, learn_sigma="per_weight")
    for name in (
        "param_shapes",
        "param_shapes_meta",
        "param_names",
        "internal_params",
        "internal_params_ref",
        "hyper_shapes_learned",
        "unconditional_params_ref",
        "conditional_param_shapes_ref",
        "target_shapes",
        "num_outputs",
        "num_known_conds",
        "num_params",
        "has_bias",
        "mask_fc_out",
        "cond_in_size",
        "batchnorm_layers",
        "context_mod_layers",
        "hyper_shapes_distilled",
    ):
        assert getattr(hnet, name) == getattr(conditional, name), name
    assert hnet.internal_hnet is conditional
    assert (hnet.has_fc_out, hnet.has_linear_out) == (False, False)
    assert hnet.distillation_targets() is None
    hnet.custom_init()
    assert not conditional.layer_bias_vectors[0].any()


def test_one_key_per_tensor(inner):
    keys = [f"_hnet._internal_params.{i}" for i in range(4)]
    assert sorted(HPerturbWrapper(inner).state_dict()) == [*keys, "_sigma_noise"]
    assert sorted(HPerturbWrapper(inner, learn_sigma="scalar").state_dict()) == [*keys, "log_sigma_noise"]
    assert len(list(HPerturbWrapper(inner).parameters())) == 4


def test_modes_and_precision_reach_the_wrapped_network():
    inner = HMLP(SHAPES, 4, 0, dropout_rate=0.5)
    hnet = HPerturbWrapper(inner).double().eval()
    assert hnet.sigma.dtype == torch.float64
    z = torch.randn(2, 9, dtype=torch.float64)
    assert torch.equal(flat(hnet, z), flat(hnet, z))
    assert not inner.training
    assert HPerturbWrapper(inner, learn_sigma="scalar").sigma.dtype == torch.float64


def test_external_weights_pass_through():
    kept = HPerturbWrapper(HMLP(SHAPES, 4, 3, num_cond_embs=2))
    bare = HPerturbWrapper(HMLP(SHAPES, 4, 3, num_cond_embs=2, no_uncond_weights=True, no_cond_weights=True))
    z, weights = torch.randn(2, 9), list(kept.internal_params)
    assert torch.equal(flat(bare, z, cond_id=1, weights=weights), flat(kept, z, cond_id=1))
    dicts = {"cond_weights": weights[:2], "uncond_weights": weights[2:]}
    assert torch.equal(flat(bare, z, cond_id=1, weights=dicts), flat(kept, z, cond_id=1))


def test_condition_selects_the_statistics():
    inner = HMLP(SHAPES, 4, 0, (5,), use_batch_norm=True)
    inner.batchnorm_layers[0].checkpoint_stats()
    hnet, z = HPerturbWrapper(inner), torch.randn(8, 9)
    hnet(z, condition=1)
    hnet.eval()
    assert not torch.equal(flat(hnet, z, condition=0), flat(hnet, z, condition=1))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms(inner):
    hnet = HPerturbWrapper(inner, learn_sigma="per_weight").double()
    z = torch.randn(5, 9, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda row: flat(hnet, row[None])[0]))(z)
    expected = torch.diag(hnet.sigma).repeat(5, 1, 1)
    expected[:, :, :4] += torch.func.vmap(torch.func.jacrev(lambda row: flat(inner, row[None])[0]))(z[:, :4])
    torch.testing.assert_close(jacobian, expected)


def test_it_logs(inner, caplog, capsys):
    with caplog.at_level(logging.INFO):
        HPerturbWrapper(inner)
        HPerturbWrapper(inner, verbose=False)
    assert [r.message for r in caplog.records] == ["Wrapped HMLP: shared noise of size 9, 9 outputs."]
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"hnet": torch.nn.Linear(2, 2)}, ArgumentTypeError, "hnet: is a Linear; pass an nn.Module that implements"),
        ({"hnet_uncond_in_size": 5}, ArgumentError, "hnet_uncond_in_size: is 5; pass 4, that of the wrapped network"),
        ({"hnet_uncond_in_size": -1}, ArgumentError, "hnet_uncond_in_size: is -1; pass 4"),
        ({"sigma_noise": -0.1}, ArgumentError, "sigma_noise: is -0.1; pass 0 or a positive number"),
        ({"sigma_noise": math.nan}, ArgumentError, "sigma_noise: is nan; pass"),
        ({"sigma_noise": 0.0, "learn_sigma": "scalar"}, ArgumentError, "sigma_noise: is 0.0; pass a positive number"),
        ({"noise": "none"}, ArgumentError, r"noise: is 'none'; pass one of \('shared', 'independent'\)"),
        ({"learn_sigma": True}, ArgumentError, "learn_sigma: is True; pass one of"),
        ({"input_handler": 3}, ArgumentTypeError, "input_handler: is an int; pass a function"),
        ({"output_handler": "f"}, ArgumentTypeError, "output_handler: is a str; pass a function"),
        (
            {"output_handler": double, "learn_sigma": "scalar"},
            ArgumentError,
            "learn_sigma: has no effect with an output",
        ),
    ],
)
def test_refused_configurations(inner, kwargs, error, message):
    with pytest.raises(error, match=message):
        HPerturbWrapper(**{"hnet": inner, **kwargs})


def test_more_noise_inputs_than_weights():
    inner = HMLP([[2]], 3, 0)
    with pytest.raises(ArgumentError, match='hnet_uncond_in_size: 3 is more than the 2 weights.*noise="independent"'):
        HPerturbWrapper(inner)
    assert HPerturbWrapper(inner, noise="independent").uncond_in_size == 5


def test_refused_inputs(inner):
    hnet = HPerturbWrapper(inner)
    with pytest.raises(ArgumentError, match=r"uncond_input: is required; pass a tensor \[batch, 9\]"):
        hnet()
    with pytest.raises(ArgumentError, match=r"uncond_input: has shape \[2, 4\]"):
        hnet(torch.ones(2, 4))
    with pytest.raises(ArgumentError, match=r"uncond_input: has shape \[9\]"):
        hnet(torch.ones(9))
    with pytest.raises(ArgumentError, match="ret_format: is 'x'; pass one of"):
        hnet(torch.ones(1, 9), ret_format="x")
    with pytest.raises(ArgumentError, match="cond_id: 0 does not exist"):
        hnet(torch.ones(1, 9), cond_id=0)

"""Guides whose hypernetwork is of another class than the default one."""

from __future__ import annotations

import math

import pytest
import torch

from bayeshnet import AutoHypernet, fit, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError
from bayeshnet.families import Hypernet, Mixture
from bayeshnet.hnets import HMLP, ChunkedHMLP, HContainer, HDeconv, HPerturbWrapper, StructuredHMLP
from tests.problems import bnn

NOISE = 3


def total(shapes):
    return sum(math.prod(shape) for shape in shapes)


def chunked(shapes, **options):
    return ChunkedHMLP(shapes, 8, 4, uncond_in_size=NOISE, cond_in_size=0, layers=(16,), **options)


def deconv(shapes, **options):
    side = math.ceil(math.sqrt(total(shapes)))
    options = {"num_layers": 3, "num_filters": [8, 4], "kernel_size": 3, "sa_units": (), **options}
    return HDeconv(shapes, (side, side), uncond_in_size=NOISE, cond_in_size=0, **options)


def assemble(chunks):
    return [tensor for chunk in chunks for tensor in chunk]


def structured(shapes, **options):
    kinds = [[shape] for shape in shapes]
    kwargs = {"layers": [16], **options}
    return StructuredHMLP(shapes, kinds, [1] * len(kinds), 2, kwargs, assemble, uncond_in_size=NOISE, cond_in_size=0)


def join(hnets, uncond, cond):
    return [*(tensor for part in hnets for tensor in part), *uncond]


def container(shapes, **options):
    """The last tensor is a plain weight; only the perturbation makes it random."""
    parts = [HMLP([shape], NOISE, 0, (16,), **options) for shape in shapes[:-1]]
    return HContainer(shapes, join, parts, uncond_param_shapes=shapes[-1:])


GENERATORS = {"chunked": chunked, "deconv": deconv, "structured": structured, "container": container}


# A generator with random layers may fold (shared noise) or bend much (independent noise). That is said, and rightly.
@pytest.mark.filterwarnings("ignore::bayeshnet.errors.FoldingWarning", "ignore::bayeshnet.errors.EntropyGapWarning")
@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_it_fits(make, noise):
    model, data = bnn()
    guide = AutoHypernet(model, example=data, family=Hypernet(make, noise=noise))
    before = [p.detach().clone() for p in guide.hnet.internal_params]
    history = fit(model, guide, data, steps=15, num_particles=4, progress=False)
    assert len(history) == 15
    assert all(math.isfinite(loss) for loss in history.losses)
    assert not any(torch.equal(p, q) for p, q in zip(guide.hnet.internal_params, before, strict=True))
    pred = predict(model, guide, data[0], num_samples=8)
    assert pred.mean.shape == (30,)
    assert torch.isfinite(pred.mean).all()


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.FoldingWarning", "ignore::bayeshnet.errors.EntropyGapWarning")
@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_self_attention_fits(noise):
    model, data = bnn()
    guide = AutoHypernet(
        model, example=data, family=Hypernet(lambda shapes: deconv(shapes, sa_units=(1,)), noise=noise)
    )
    history = fit(model, guide, data, steps=5, num_particles=4, progress=False)
    assert all(math.isfinite(loss) for loss in history.losses)


@pytest.mark.parametrize(
    ("make", "options", "what"),
    [
        *((make, {"use_batch_norm": True}, "batch norm") for make in GENERATORS.values()),
        # A deconvolutional hypernetwork has no dropout.
        *((make, {"dropout_rate": 0.1}, "dropout") for make in GENERATORS.values() if make is not deconv),
    ],
)
def test_no_density_no_guide(make, options, what):
    model, data = bnn()
    for wrap in (lambda hnet: hnet, HPerturbWrapper):
        with pytest.raises(DensityError, match=f"hnet: has {what}"):
            AutoHypernet(model, example=data, hnet=lambda shapes, wrap=wrap: wrap(make(shapes, **options)))


@pytest.mark.parametrize(
    "make",
    [
        HMLP,  # the defaults of the class
        lambda shapes: HMLP(shapes, uncond_in_size=8),
        lambda shapes: HPerturbWrapper(HMLP(shapes)),
        lambda shapes: HPerturbWrapper(HMLP(shapes, 8, 4, num_cond_embs=0)),
        lambda shapes: ChunkedHMLP(shapes, 8),
        lambda shapes: ChunkedHMLP(shapes, 8, uncond_in_size=NOISE, cond_in_size=0, cond_chunk_embs=True),
        lambda shapes: HContainer(shapes, join, [HMLP([s]) for s in shapes[:-1]], uncond_param_shapes=shapes[-1:]),
    ],
)
def test_a_condition_is_not_to_be_had(make):
    model, data = bnn()
    with pytest.raises(ArgumentError, match="hnet: this .* needs a condition.*uncond_in_size=8, cond_in_size=0"):
        AutoHypernet(model, example=data, hnet=make)
    with pytest.raises(ArgumentError, match="hnet: this .* needs a condition"):
        AutoHypernet(model, example=data, family=Mixture(Hypernet(make), 2))


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.FoldingWarning", "ignore::bayeshnet.errors.EntropyGapWarning")
@pytest.mark.parametrize("wrap", [lambda hnet: hnet, HPerturbWrapper])
def test_a_hypernetwork_instead_of_a_function(wrap):
    model, data = bnn()
    shapes = AutoHypernet(model, example=data).target_shapes
    hnet = wrap(HMLP(shapes, NOISE, 0))
    guide = AutoHypernet(model, example=data, hnet=hnet)
    assert guide.hnet is hnet or guide.hnet.internal_hnet is hnet
    assert math.isfinite(fit(model, guide, data, steps=2, num_particles=4, progress=False).losses[-1])
    with pytest.raises(ArgumentError, match="hnet: produces 9 numbers, and the latents that it draws are 26"):
        AutoHypernet(model, example=data, hnet=wrap(HMLP([[9]], NOISE, 0)))
    with pytest.raises(ArgumentError, match="hnet: this .* needs a condition"):
        AutoHypernet(model, example=data, hnet=wrap(HMLP(shapes)))
    with pytest.raises(ArgumentError, match="hnet: is one hypernetwork.*pass a function"):
        AutoHypernet(model, example=data, family=Mixture(Hypernet(hnet), 2))
    with pytest.raises(ArgumentTypeError, match="hnet: is an int; pass a function"):
        AutoHypernet(model, example=data, hnet=3)

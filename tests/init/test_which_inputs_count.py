"""Variances of inputs count only where there is such an input; the Gaussian method is the function; the other path.

Before, ``apply_hyperfan_init(uncond_var=-1)`` of a network without unconditional input raised ``uncond_var: -1 was
given; a variance is 0 or positive``.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from bayeshnet import init
from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.hnets import HMLP, ChunkedHDeconv, ChunkedHMLP, HContainer, HDeconv, HPerturbWrapper, StructuredHMLP
from bayeshnet.mnets import MLP
from bayeshnet.probabilistic import gauss_hnet_init

SHAPES = [[6, 5], [6]]


def chain(chunks):
    return [tensor for chunk in chunks for tensor in chunk]


def hmlp(shapes, sizes):
    return HMLP(shapes, **sizes, layers=(7,))


def chunked(shapes, sizes):
    return ChunkedHMLP(shapes, 9, **sizes, chunk_emb_size=4, layers=(7,))


def structured(shapes, sizes):
    chunks = [[shape] for shape in shapes]
    return StructuredHMLP(shapes, chunks, [1] * len(chunks), 4, {"layers": (7,)}, chain, **sizes)


def container(shapes, sizes):
    part, plain = hmlp(shapes[:-1], sizes), shapes[-1:]
    return HContainer(shapes, lambda h, u, c: h[0] + u, [part], uncond_param_shapes=plain)


def container_of_chunked(shapes, sizes):
    return HContainer(shapes, lambda h, u, c: h[0], [chunked(shapes, sizes)])


def wrapped(shapes, sizes):
    return HPerturbWrapper(hmlp(shapes, sizes), noise="independent")


NOISE = ({"uncond_in_size": 3, "cond_in_size": 0}, "cond_var")
EMBEDDING = ({"uncond_in_size": 0, "cond_in_size": 3}, "uncond_var")
METHODS = {
    "hmlp": (hmlp, SHAPES, lambda hnet, **kw: hnet.apply_hyperfan_init(**kw)),
    "chunked": (chunked, SHAPES, lambda hnet, **kw: hnet.apply_chunked_hyperfan_init(**kw)),
    "function": (wrapped, SHAPES, init.hyperfan_init),
    "structured": (structured, SHAPES, init.hyperfan_init),
    "container": (container, SHAPES, init.hyperfan_init),
    "chunked container": (container_of_chunked, SHAPES, init.chunked_hyperfan_init),
    **{
        f"gaussian {make.__name__}": (make, 2 * SHAPES, init.gauss_hyperfan_init)
        for make in (hmlp, chunked, wrapped, structured, container, container_of_chunked)
    },
}


def draw(make, shapes, sizes, initialise, **kwargs):
    torch.manual_seed(0)
    hnet = make(shapes, sizes)
    own = "uncond_var" if sizes["uncond_in_size"] else "cond_var"
    initialise(hnet, **{own: 0.001, **kwargs})
    return list(hnet.internal_params)


@pytest.mark.parametrize(("sizes", "absent"), [NOISE, EMBEDDING], ids=["noise", "embedding"])
@pytest.mark.parametrize(("make", "shapes", "initialise"), METHODS.values(), ids=METHODS)
def test_an_absent_input_counts_for_nothing(make, shapes, initialise, sizes, absent):
    expected = draw(make, shapes, sizes, initialise)
    for value in (-1, 0.0, 7.0, None):
        same = draw(make, shapes, sizes, initialise, **{absent: value})
        assert all(torch.equal(one, two) for one, two in zip(expected, same, strict=True)), value
    present = "cond_var" if absent == "uncond_var" else "uncond_var"
    with pytest.raises(ArgumentError, match=f"{present}: is -1; pass a variance, 0 or more"):
        draw(make, shapes, sizes, initialise, **{present: -1})


def test_bias_free_heads_too():
    torch.manual_seed(0)
    hnet = HMLP(2 * [[6, 5]], uncond_in_size=4, cond_in_size=0, layers=(7,), use_bias=False)
    init.gauss_hyperfan_init(hnet, cond_var=-1)


@pytest.mark.parametrize("make", [hmlp, chunked, wrapped, structured, container, container_of_chunked])
def test_the_gaussian_method_is_the_function(make):
    mnet = MLP(5, 6, hidden_layers=())
    hnets = []
    for initialise in (type(make(2 * SHAPES, NOISE[0])).apply_gauss_hyperfan_init, init.gauss_hyperfan_init):
        torch.manual_seed(1)
        hnet = make(2 * SHAPES, NOISE[0])
        initialise(hnet, mnet=mnet, mean_var=0.01, rho_var=0.02, uncond_var=0.001)
        hnets.append(hnet)
    for one, two in zip(*(hnet.internal_params for hnet in hnets), strict=True):
        assert torch.equal(one, two)


def test_the_gaussian_method_refuses_by_name():
    with pytest.raises(UsageError, match="a plain HDeconv makes all its targets by the same kernels"):
        HDeconv([[20], [20]], (8, 8), num_layers=3, num_filters=[2, 2], sa_units=()).apply_gauss_hyperfan_init()
    with pytest.raises(ArgumentError, match=r"not those of means and rhos; pass a network"):
        HMLP([[3], [2]]).apply_gauss_hyperfan_init()
    deconv = ChunkedHDeconv([[20], [20]], (4, 4), num_layers=2, num_filters=[2], sa_units=(), uncond_in_size=1)
    deconv.apply_gauss_hyperfan_init(uncond_var=0.001, cond_var=0.001)


def test_the_methods_are_the_functions():
    """One signature each, written once; the reference's names and order (docs of hypnettorch)."""
    assert HMLP.apply_hyperfan_init is init.hyperfan_init
    assert ChunkedHMLP.apply_chunked_hyperfan_init is init.chunked_hyperfan_init
    assert HMLP.apply_gauss_hyperfan_init is init.gauss_hyperfan_init
    names = "method use_xavier uncond_var cond_var mnet w_val w_var b_val b_var"
    assert list(inspect.signature(HMLP([[3]]).apply_hyperfan_init).parameters) == names.split()
    names = "method use_xavier uncond_var cond_var eps cemb_normal_init mnet target_vars"
    assert list(inspect.signature(ChunkedHMLP([[3]], 2).apply_chunked_hyperfan_init).parameters) == names.split()
    for function in (init.hyperfan_init, init.chunked_hyperfan_init, init.gauss_hyperfan_init):
        assert inspect.signature(function).parameters["mnet"].default is None


def test_the_path_of_the_reference():
    assert gauss_hnet_init.__all__ == ["gauss_hyperfan_init"]
    assert gauss_hnet_init.gauss_hyperfan_init is init.gauss_hyperfan_init

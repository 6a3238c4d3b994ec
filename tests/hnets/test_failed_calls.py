"""Inputs that a hypernetwork fails on. Before: "mat1 and mat2 must have the same dtype, but got Double and Float"."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP, ChunkedHMLP, HDeconv, HPerturbWrapper

Z = torch.randn(5, 3)


def hmlp(**options):
    return HMLP([[7]], uncond_in_size=3, layers=(4,), verbose=False, **options)


CASES = {
    "HMLP": (lambda: hmlp(cond_in_size=0), lambda h, z: h(z)),
    "HMLP, condition": (lambda: hmlp(cond_in_size=3), lambda h, z: h(Z, cond_input=z)),
    "ChunkedHMLP": (
        lambda: ChunkedHMLP([[7]], 4, chunk_emb_size=2, uncond_in_size=3, cond_in_size=0, layers=(4,), verbose=False),
        lambda h, z: h(z),
    ),
    "HPerturbWrapper": (
        lambda: HPerturbWrapper(hmlp(cond_in_size=0), verbose=False),
        lambda h, z: h(torch.cat([z, z, z[:, :1]], 1)),
    ),
    "HDeconv": (
        lambda: HDeconv([[2, 3], [2]], (4, 4, 1), uncond_in_size=3, cond_in_size=0, num_layers=2, num_filters=[4]),
        lambda h, z: h(z),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_another_dtype(case):
    make, call = CASES[case]
    name = "cond_input" if "condition" in case else "uncond_input"
    with pytest.raises(
        ArgumentTypeError, match=f"^{name}: has dtype torch.float64, the hypernetwork's weights have"
    ) as e:
        call(make(), Z.double())
    assert isinstance(e.value.__cause__, RuntimeError)
    if case in ("HMLP", "HPerturbWrapper", "HDeconv"):  # where inputs are concatenated, 32 bits become 64
        with pytest.raises(ArgumentTypeError, match=f"{name}: has dtype torch.float32, .* have torch.float64"):
            call(make().double(), Z)
        assert call(make().double(), Z.double()) is not None
    with pytest.raises(ArgumentTypeError, match=f"{name}: has dtype torch.int64; pass a floating-point tensor"):
        call(make(), Z.long())


def test_no_rows_and_sparse():
    with pytest.raises(ArgumentError, match="uncond_input: has no rows"):
        CASES["ChunkedHMLP"][0]()(Z[:0])
    with pytest.raises(ArgumentTypeError, match=r"uncond_input: is a tensor of layout torch.sparse_coo"):
        CASES["ChunkedHMLP"][0]()(Z.to_sparse())


def test_an_error_of_another_cause_goes_through():
    def broken(h):
        raise RuntimeError("a mistake of its own")

    with pytest.raises(RuntimeError, match="a mistake of its own"):
        HMLP([[7]], uncond_in_size=3, cond_in_size=0, layers=(4,), activation_fn=broken, verbose=False)(Z)

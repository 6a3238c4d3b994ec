"""The check of shapes finds what it should: a tool that never complains is no evidence."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import torch

from bayeshnet.metrics import crps
from tests.shapes import ShapeError, install, tensor_aliases

MODULE = '''
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bayeshnet.typing import LogDensities, Scalar, Targets, WeightBatch, Weights


def scale(weights: WeightBatch, by: Weights | None = None) -> WeightBatch:
    """The weights.

    >>> scale(torch.ones(1, 1))
    tensor([[1.]])
    """
    if weights.dim() != 2:
        raise ValueError("weights: pass a matrix")
    return weights if by is None else weights * by


def total(weights: WeightBatch) -> LogDensities:
    return weights.sum(0)  # a mistake: the sum over the samples


def both(weights: WeightBatch) -> tuple[Scalar, Targets]:
    return weights.sum(), weights


@dataclass(frozen=True, slots=True)
class Draw:
    weights: WeightBatch
    log_q: LogDensities | None = None


class Sampler:
    @property
    def log_q(self) -> LogDensities:
        return self.wrong

    @staticmethod
    def doubled(weights: WeightBatch, number: str) -> WeightBatch:
        return 2 * weights


def plain(x: Tensor) -> Tensor:
    return x
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "shaped.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    remove = install("shaped")
    yield importlib.import_module("shaped")
    remove()
    del sys.modules["shaped"]


def test_right_shapes_pass(module):
    assert module.scale(torch.ones(3, 2), torch.ones(2)).shape == (3, 2)
    assert module.scale(torch.ones(3, 2)).shape == (3, 2)
    assert module.Draw(torch.ones(3, 2), torch.ones(3)).log_q.shape == (3,)
    module.both(torch.ones(3, 2))
    module.Sampler.doubled(torch.ones(3, 2), number=3)  # only shapes are checked, whatever else is annotated


def test_a_result_of_a_wrong_shape_is_found(module):
    module.total(torch.ones(2, 2))  # nobody can tell
    with pytest.raises(
        ShapeError, match=r"shaped\.total: `return` is no Float\[Tensor, 'S'\]; given: weights float32 \[3, 2\], return"
    ):
        module.total(torch.ones(3, 2))


def test_sizes_of_one_call_agree(module):
    """[S, D] times [S, D] of another S broadcasts where one of them is 1."""
    with pytest.raises(
        ShapeError, match=r"shaped\.scale: `by` is no .*given: weights float32 \[3, 1\], by float32 \[2\]"
    ):
        module.scale(torch.ones(3, 1), torch.ones(2))
    with pytest.raises(ShapeError, match="Draw.*`log_q`"):
        module.Draw(torch.ones(3, 2), torch.ones(2))


def test_dtypes_are_checked(module):
    with pytest.raises(ShapeError, match=r"weights int64 \[3, 2\]"):
        module.Sampler.doubled(torch.ones(3, 2, dtype=torch.long), "")


def test_a_property_is_checked(module):
    sampler = module.Sampler()
    sampler.wrong = torch.ones(3, 2)
    with pytest.raises(ShapeError, match="log_q"):
        _ = sampler.log_q


def test_a_functions_own_error_comes_first(module):
    with pytest.raises(ValueError, match="pass a matrix"):
        module.scale(torch.ones(3))


def test_code_that_tries_another_way_does_not_hide_it(module):
    def tries():
        try:
            return module.total(torch.ones(3, 2))
        except Exception:
            return None

    with pytest.raises(ShapeError):
        tries()


def test_functions_stay_what_they_are(module):
    assert module.scale.__name__ == "scale"
    assert module.scale.__globals__ is module.__dict__, "doctest finds examples by this"
    assert not hasattr(module.plain, "__wrapped__")
    assert hasattr(module.scale, "__wrapped__")


def test_the_package_is_checked_where_the_switch_is_on():
    assert hasattr(crps, "__wrapped__") == (os.environ.get("BAYESHNET_CHECK_SHAPES") == "1")
    if not hasattr(crps, "__wrapped__"):
        with pytest.raises(RuntimeError, match="imported already"):
            install()


def test_aliases():
    names = tensor_aliases()
    assert {"WeightBatch", "WeightSamples", "Labels"} <= names
    assert not {"Shape", "CondId", "WeightsArg"} & names


def test_without_jaxtyping_they_are_tensors():
    program = (
        "import sys; sys.modules['jaxtyping'] = None\n"
        "import typing, torch, bayeshnet\n"
        "def fn(weights: bayeshnet.typing.WeightBatch) -> bayeshnet.typing.Labels: ...\n"
        "assert typing.get_type_hints(fn) == {'weights': torch.Tensor, 'return': torch.Tensor}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

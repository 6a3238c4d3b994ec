"""The four return formats and the way between them."""

from __future__ import annotations

import itertools

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP
from bayeshnet.hnets.formats import RET_FORMATS, TargetLayout, convert_format, format_output

SHAPES = [[3, 2], [], [0, 4], [3]]
LAYOUT = TargetLayout.of(SHAPES)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_way_there_and_back(batch):
    flat = torch.arange(batch * 10.0).reshape(batch, 10)
    for via, via2 in itertools.product(RET_FORMATS, repeat=2):
        there = convert_format(flat, LAYOUT, "flattened", via)
        back = convert_format(convert_format(there, LAYOUT, via, via2), LAYOUT, via2, "flattened")
        assert torch.equal(back, flat)


@pytest.mark.parametrize("ret_format", ["stacked", "sequential", "squeezed"])
@pytest.mark.parametrize("batch", [1, 3])
def test_cutting_copies_nothing(ret_format, batch):
    flat = torch.randn(batch, 10)
    out = format_output(flat, LAYOUT, ret_format)
    memory = flat.untyped_storage().data_ptr()
    tensors = [t for part in out for t in (part if isinstance(part, list) else [part])]
    assert all(t.untyped_storage().data_ptr() == memory for t in tensors if t.numel())


def test_backward_writes_each_gradient_once():
    # One split, not one slice per target: its backward is a single concatenation.
    flat = torch.randn(1, 200, requires_grad=True)
    out = format_output(flat, TargetLayout.of([[2]] * 100), "squeezed")
    parents = {fn for t in out for fn, _ in t.grad_fn.next_functions}
    assert len(parents) == 1
    assert "Split" in parents.pop().name()


def test_output_may_be_expanded_or_transposed():
    flat = torch.randn(1, 10).expand(3, -1)
    assert torch.equal(format_output(flat, LAYOUT, "stacked")[0], flat[:, :6].reshape(3, 3, 2))
    flat = torch.randn(10, 3).t()
    assert torch.equal(format_output(flat, LAYOUT, "stacked")[0], flat[:, :6].reshape(3, 3, 2))


def test_tuples_are_lists():
    out = convert_format(format_output(torch.ones(2, 10), LAYOUT, "stacked"), LAYOUT, "stacked", "sequential")
    assert torch.equal(convert_format(tuple(map(tuple, out)), LAYOUT, "sequential", "flattened"), torch.ones(2, 10))


@pytest.mark.parametrize(
    ("out", "src", "trgt", "error", "message"),
    [
        (torch.ones(1, 10), "flat", "stacked", ArgumentError, "src_format: is 'flat'; pass one of 'flattened',"),
        (torch.ones(1, 10), "flattened", "list", ArgumentError, "trgt_format: is 'list'; pass one of"),
        (
            torch.ones(10),
            "flattened",
            "stacked",
            ArgumentError,
            r"hnet_out: has shape \(10,\); pass 'flattened' output .* \[B, 10\]",
        ),
        (torch.ones(1, 9), "flattened", "stacked", ArgumentError, r"hnet_out: has shape \(1, 9\)"),
        ([torch.ones(1, 10)], "flattened", "stacked", ArgumentTypeError, "a list; .* pass one tensor"),
        (torch.ones(1, 10), "stacked", "flattened", ArgumentTypeError, "a Tensor; .* pass a list with one tensor"),
        ([[torch.ones(1)]], "stacked", "flattened", ArgumentTypeError, "a list with one tensor"),
        ([torch.ones(2, 3, 2)], "stacked", "flattened", ArgumentError, r"tensors of shapes \[\[2, 3, 2\]\]; pass"),
        (torch.ones(1, 10), "sequential", "flattened", ArgumentTypeError, "a Tensor; .* pass a list of B lists"),
        ([], "sequential", "flattened", ArgumentTypeError, "a list of B lists"),
        ([torch.ones(3, 2)], "sequential", "flattened", ArgumentTypeError, "a Tensor; .* pass a list of B lists"),
        (
            [torch.ones(3, 2)],
            "squeezed",
            "flattened",
            ArgumentError,
            r"tensors of shapes \[\[3, 2\]\]; pass 'squeezed'",
        ),
        ([[torch.ones(3, 2)]], "squeezed", "flattened", ArgumentError, "tensors of shapes"),
    ],
)
def test_what_does_not_fit_is_refused(out, src, trgt, error, message):
    with pytest.raises(error, match=message):
        convert_format(out, LAYOUT, src, trgt)


def test_convert_out_format_of_a_network():
    hnet = HMLP(SHAPES, uncond_in_size=2, cond_in_size=0, layers=())
    z = torch.randn(4, 2)
    squeezed = hnet(z[:1])
    assert torch.equal(hnet.convert_out_format(squeezed, "squeezed", "sequential")[0][0], squeezed[0])
    assert len(hnet.convert_out_format(hnet(z, ret_format="flattened"), "flattened", "sequential")) == 4

"""Assembly functions: the vectorised form and the loop agree, and what users do in them is borne."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets import StructuredHMLP
from bayeshnet.hnets.assembly import Assembler, trace_assembly, trace_places
from bayeshnet.hnets.formats import TargetLayout, format_output

SHAPES = [(4, 3), (2,)]  # from two matrices [2, 3] and a vector


def concatenate(pieces):
    first, second, bias = pieces
    return [torch.cat([first, second]), bias]


def write_into_a_new_tensor(pieces):
    """The result is no batched tensor before the first sample is written into it."""
    out = torch.zeros(4, 3, dtype=pieces[0].dtype)
    out[:2], out[2:] = pieces[0], pieces[1]
    return [out, pieces[2]]


def write_into_a_like(pieces):
    out = torch.zeros_like(torch.cat(pieces[:2]))
    out[:2], out[2:] = pieces[0], pieces[1]
    return [out, pieces[2]]


def branch_on_a_value(pieces):
    first, second, bias = pieces
    return [torch.cat([first, second] if first[0, 0] > 0 else [second, first]), bias]


def read_a_number(pieces):
    return [torch.cat(pieces[:2]), pieces[2] * (1 if pieces[2][0].item() > 0 else -1)]


def return_a_constant(pieces):
    return [torch.cat(pieces[:2]), torch.tensor([1.0, 2.0], dtype=pieces[0].dtype)]


VECTORISED = [concatenate, write_into_a_like, return_a_constant]
LOOPED = [write_into_a_new_tensor, branch_on_a_value, read_a_number]


def pieces_of(batch, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)
        for shape in [(2, 3), (2, 3), (2,)]
    ]


@pytest.mark.parametrize("fct", [*VECTORISED, *LOOPED])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_every_sample_is_what_the_function_returns(fct, batch):
    assemble, pieces = Assembler(fct, SHAPES), pieces_of(batch, requires_grad=True)
    out = assemble(pieces)
    assert [tuple(t.shape) for t in out] == [(batch, *shape) for shape in SHAPES]
    expected = [fct([piece[b] for piece in pieces]) for b in range(batch)]
    for i, tensor in enumerate(out):
        assert torch.equal(tensor, torch.stack([sample[i] for sample in expected]))
    # ... and so are the gradients.
    directions = [torch.randn_like(tensor) for tensor in out]
    ours, by_hand = (
        torch.autograd.grad(
            sum((t * d).sum() for t, d in zip(tensors, directions, strict=True)), pieces, allow_unused=True
        )
        for tensors in (out, [torch.stack(tensors) for tensors in zip(*expected, strict=True)])
    )
    for one, two in zip(ours, by_hand, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two)


@pytest.mark.parametrize(("fct", "once"), [*((f, True) for f in VECTORISED), *((f, False) for f in LOOPED)])
def test_one_call_where_possible(fct, once):
    calls = []

    def counted(pieces):
        calls.append(len(pieces))
        return fct(pieces)

    assemble = Assembler(counted, SHAPES)
    assemble(pieces_of(5))
    calls.clear()  # which form it is, is known now
    assemble(pieces_of(5))
    assert len(calls) == (1 if once else 5)
    assert assemble.fct is counted


@pytest.mark.parametrize("fct", [concatenate, write_into_a_new_tensor])
def test_what_all_samples_share_is_broadcast(fct):
    pieces = pieces_of(3)
    pieces[1] = pieces[1][:1]
    out = Assembler(fct, SHAPES)(pieces)
    assert torch.equal(out[0][:, 2:], pieces[1].expand(3, -1, -1))


def test_several_arguments_and_nested_lists():
    def fct(hnets, uncond, cond):
        assert uncond == []
        return [hnets[0][0], hnets[1][0], cond[0]]

    parts = [[torch.randn(3, 2)], [torch.randn(1, 4)]]
    out = Assembler(fct, [(2,), (4,), (1,)])(parts, [], [torch.randn(3, 1)])
    assert [tuple(t.shape) for t in out] == [(3, 2), (3, 4), (3, 1)]


@pytest.mark.parametrize("batch", [1, 4])
def test_moving_nothing_copies_nothing(batch):
    pieces = pieces_of(batch)[1:]
    out = Assembler(lambda given: list(reversed(given)), [(2,), (2, 3)])(pieces)
    for tensor, piece in zip(out, reversed(pieces), strict=True):
        assert tensor.data_ptr() == piece.data_ptr()


@pytest.mark.parametrize("loop", [False, True])
def test_random_numbers_differ_between_samples(loop):
    def fct(pieces):
        if loop and pieces[0][0] > 10:
            return pieces
        return [pieces[0] + torch.randn(2)]

    (out,) = Assembler(fct, [(2,)])([torch.zeros(50, 2)])
    assert len(torch.unique(out)) == 100
    (dropped,) = Assembler(lambda p: [torch.nn.functional.dropout(p[0], 0.5)], [(8,)])([torch.ones(50, 8)])
    assert len({tuple(row.tolist()) for row in dropped}) > 1


def test_it_runs_inside_a_transform():
    def flat(row):
        return torch.cat(
            [t.flatten() for t in Assembler(concatenate, SHAPES)([row[:6].view(1, 2, 3)] * 2 + [row[None, 6:]])]
        )

    rows = torch.randn(5, 8, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(flat))(rows)
    expected = torch.zeros(14, 8, dtype=torch.float64)
    expected[:6, :6], expected[6:12, :6], expected[12:, 6:] = torch.eye(6), torch.eye(6), torch.eye(2)
    assert torch.equal(jacobian, expected.expand(5, -1, -1))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("fct", "error", "message"),
    [
        (
            lambda p: [p[0]],
            ArgumentError,
            r"returned 1 tensors of shapes \[\[2, 3\]\]; let it return the 2 target_shapes",
        ),
        (
            lambda p: [*p, *p[:1] * 10],
            ArgumentError,
            r"returned 13 tensors of shapes \[.*\] and 3 more; let it return the 2 target",
        ),
        (lambda p: [p[0], p[2]], ArgumentError, r"returned shape \[2, 3\] as tensor 0; let it return \[4, 3\]"),
        (
            lambda p: [torch.cat(p[:2]), p[2][None]],
            ArgumentError,
            r"shape \[1, 2\] as tensor 1; let it return \[2\]",
        ),
        (lambda p: None, ArgumentTypeError, "returned a NoneType; let it return a list of tensors"),
        (lambda p: p[0], ArgumentTypeError, "returned a Tensor; let it return a list of tensors"),
        (lambda p: (t for t in p), ArgumentTypeError, "returned a generator; let it return a list of tensors"),
        (lambda p: {"weight": p[0]}, ArgumentTypeError, "returned a dict; let it return a list of tensors"),
        (
            lambda p: [[p[0]], p[2]],
            ArgumentTypeError,
            r"returned a list with \['list', 'Tensor'\]; let it return a list of tensors",
        ),
        (lambda p: [p[0].detach().numpy(), p[2]], ArgumentTypeError, r"returned a list with \['ndarray', 'Tensor'\]"),
        (lambda p: [1.0, p[2]], ArgumentTypeError, r"returned a list with \['float', 'Tensor'\]"),
    ],
)
def test_other_results(fct, error, message, batch):
    with pytest.raises(error, match=f"assembly_fct: .*{message}"):
        Assembler(fct, SHAPES)(pieces_of(batch))


def test_a_tuple_is_a_list():
    out = Assembler(lambda p: tuple(concatenate(p)), SHAPES)(pieces_of(3))
    assert torch.equal(out[1], pieces_of(3)[2])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("fct", "error", "message"),
    [
        (lambda p: p[7], IndexError, "list index out of range"),
        (lambda p: {"a": p}["b"], KeyError, "b"),
        (lambda a, b: a, TypeError, "missing 1 required positional argument: 'b'"),
        (lambda p: [torch.cat([p[0], p[2]])], RuntimeError, "Tensors must have same number of dimensions"),
    ],
)
def test_errors_of_the_function_are_its_own(fct, error, message, batch):
    with pytest.raises(error, match=message) as caught:
        Assembler(fct, SHAPES)(pieces_of(batch))
    assert type(caught.value) is error


@pytest.mark.parametrize("fct", [None, [], "each", 3])
def test_no_function(fct):
    with pytest.raises(ArgumentTypeError, match=f"assembly_fct: is an? {type(fct).__name__}; pass a function"):
        Assembler(fct, SHAPES)


def test_both_forms_in_a_network():
    def build(fct):
        torch.manual_seed(0)
        return StructuredHMLP([[4, 3]], [[[2, 3]]], [2], 2, {"layers": [5]}, fct, uncond_in_size=2, cond_in_size=0)

    def loop(chunks):
        return [torch.cat([chunks[0][0], chunks[1][0]]) * (2 if chunks[0][0].sum() > 1e6 else 1)]

    fast, slow = build(lambda chunks: [torch.cat([chunk[0] for chunk in chunks])]), build(loop)
    z = torch.randn(6, 2)
    results = []
    for hnet in (fast, slow):
        out = hnet(z, ret_format="stacked")[0]
        out.square().sum().backward()
        results.append([out, *(p.grad for p in hnet.internal_params)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


# ---------------------------------------------------------------------- what becomes of the result


@pytest.mark.parametrize("batch", [1, 3])
def test_formats_of_assembled_tensors(batch):
    stacked = [torch.randn(batch, *shape) for shape in [(4, 3), (), (2,)]]
    layout = TargetLayout.of([[4, 3], [], [2]])
    assert format_output(stacked, layout, "stacked") is stacked
    flat = format_output(stacked, layout, "flattened")
    assert torch.equal(flat, torch.stack([torch.cat([t[b].flatten() for t in stacked]) for b in range(batch)]))
    samples = format_output(stacked, layout, "sequential")
    assert len(samples) == batch
    for b, sample in enumerate(samples):
        for tensor, whole in zip(sample, stacked, strict=True):
            assert tensor.shape == whole.shape[1:]
            assert tensor.data_ptr() == whole[b].data_ptr()
    squeezed = format_output(stacked, layout, "squeezed")
    for one, two in zip(squeezed if batch == 1 else squeezed[0], samples[0], strict=True):
        assert one.data_ptr() == two.data_ptr()
    # One tensor needs no copy to be flat.
    assert format_output(stacked[:1], TargetLayout.of([[4, 3]]), "flattened").data_ptr() == stacked[0].data_ptr()


@pytest.mark.parametrize("ret_format", ["stacked", "sequential", "squeezed"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_whose_assembly_moves_nothing_copies_nothing(batch, ret_format):
    hnet = StructuredHMLP(
        [[4, 3], [4], [4, 3], [4]],
        [[[4, 3], [4]]],
        [2],
        2,
        {"layers": [5]},
        lambda chunks: [tensor for chunk in chunks for tensor in chunk],
        uncond_in_size=2,
        cond_in_size=0,
    )
    out = hnet(torch.randn(batch, 2), ret_format=ret_format)
    tensors = [t for part in out for t in (part if isinstance(part, list) else [part])]
    # All are views of what the internal network made: 32 numbers of 4 bytes per sample.
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == 1
    assert tensors[0].untyped_storage().nbytes() == batch * 32 * 4


def test_tracing_an_assembly():
    def assemble(tensors):
        a, b, c, _ = tensors
        first = torch.cat([a, b.flatten(1), torch.zeros(1, 3)], dim=1)  # constants come from nowhere
        return [first, c.transpose(1, 2), torch.cat([a, a], dim=1)]

    assert trace_assembly(assemble, [[2], [2, 2], [3, 4], [5]]) == [{0: 2, 2: 4}, {0: 4}, {1: 12}, {}]


def test_constants_do_not_look_like_weights():
    assert trace_assembly(lambda t: [torch.cat([t[0], torch.linspace(0, 2, 100)[None]], dim=1)], [[2]]) == [{0: 2}]


def test_an_assembly_that_computes():
    for assemble in (
        lambda t: [2 * t[0]],
        lambda t: [t[0] + t[1]],
        lambda t: [(t[0] + t[1]) / 2],
        lambda t: [t[0] - t[1], t[0]],
    ):
        with pytest.raises(UsageError, match="changes the weights of target 0 instead of moving them"):
            trace_assembly(assemble, [[2], [2]])


def test_tracing_leaves_the_generator_alone():
    state = torch.get_rng_state()
    trace_assembly(lambda t: t, [[2], [2]])
    assert torch.equal(torch.get_rng_state(), state)


def test_places_are_composed():
    """Two tensors in one target of an inner network, which is split between two outer targets."""
    places = [{5: 0.25, 7: 0.75}, {7: 1.0}]
    found = trace_places(lambda t: [torch.cat(t[:2], dim=1), t[1]], [[2], [6], [3]], places)
    assert found == [{5: 0.25, 7: 0.75}, {5: 0.125, 7: 0.875}, {}]

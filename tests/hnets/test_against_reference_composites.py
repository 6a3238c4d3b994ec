"""Chunked, structured and container networks and wrappers around them against hypnettorch 0.0.4, where it is right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bayeshnet import hnets
from bayeshnet.errors import ArgumentError
from bayeshnet.hnets import hnet_helpers

from .factories import double, everything
from .reference import Theirs, assert_same, assert_same_lists, quiet, reference, twins

SHAPES = [[3, 2], [3], [4, 1, 2]]  # 17 weights: chunks of 5 leave a surplus of 3
STRUCTURED = [[3], [3], [4, 2], [4], [8, 2], [8]]

HMLP_OPTIONS = [
    {"layers": ()},
    {"layers": (5,), "use_bias": False, "activation_fn": torch.tanh},
    {"layers": (5, 4), "use_batch_norm": True},
    {"layers": (5, 4), "dropout_rate": 0.5},
]
EXTERNAL = {"no_uncond_weights": True, "no_cond_weights": True}
# Sizes of the inputs, whether chunk embeddings are conditional, number of conditions.
INPUTS = [(2, 0, False, 1), (0, 3, False, 3), (2, 3, False, 3), (0, 0, True, 3), (2, 0, True, 3), (2, 3, True, 3)]


def chunked(uncond, cond, conditional, num, options, **external):
    def build(library):
        return library.ChunkedHMLP(
            SHAPES, 5, 2, conditional, uncond, cond, num_cond_embs=num, **{"layers": (5,), **options}, **external
        )

    return build


def structured(uncond, cond, conditional, num, options, **external):
    def build(library):
        kwargs = [{"layers": (5,), **options}, {"layers": [4], "verbose": False}]
        sizes = [2, 3]
        return library.StructuredHMLP(
            STRUCTURED,
            [[[3]], [[4, 2], [4]]],
            [2, 3],
            sizes,
            kwargs,
            double,
            conditional,
            uncond,
            cond,
            num_cond_embs=num,
            **external,
        )

    return build


def container(uncond, cond, conditional, num, options, **external):
    """Two networks and plain weights; ``conditional`` says whether some of the latter are."""

    def build(library):
        parts = [
            library.HMLP([[3, 2], [3]], uncond, cond, num_cond_embs=num, **{"layers": (5,), **options}, **external),
            library.ChunkedHMLP([[4, 2]], 5, 2, False, uncond, cond, layers=(4,), num_cond_embs=num, **external),
        ]
        plain = [[2], [2, 1]]
        return library.HContainer(
            [[3, 2], [3], [4, 2], [2], [2, 1], *([[6]] if conditional else [])],
            everything,
            parts,
            plain,
            [[6]] if conditional else None,
            ["bn_scale", None],
            ["cm_shift"] if conditional else None,
            num_cond_embs=num,
            **external,
        )

    return build


BUILDERS = {"chunked": chunked, "structured": structured, "container": container}


def cases():
    for (name, build), inputs in itertools.product(BUILDERS.items(), INPUTS):
        if not (build is container and not inputs[1]):  # there a container of plain noise samplers knows no conditions
            yield pytest.param(build, inputs, id=f"{name}-{inputs}")


def conditions(build, uncond, cond, conditional, num):
    """Ways to say which condition, with the number of samples."""
    if not cond and not conditional:
        return [({}, 4)]
    ways = [({"cond_id": 1}, 1), ({"cond_id": [2, 0, 1, 1]}, 4)]
    if not conditional:
        ways.append(({"cond_input": torch.randn(4, cond).double()}, 4))
        if uncond:
            ways.append(({"cond_id": 1}, 4))  # one condition for all samples
    return ways


def compare(theirs, ours, build, inputs, *, weights=None, noise_size=None):
    uncond = inputs[0] if noise_size is None else noise_size
    for condition, batch in conditions(build, *inputs):
        z = torch.randn(batch, uncond).double() if uncond else None
        for fmt in ("flattened", "sequential", "squeezed"):
            # Theirs changes the argument.
            out = [
                hnet(z, **condition, weights=weights and type(weights)(weights), ret_format=fmt)
                for hnet in (theirs, ours)
            ]
            assert_same(*out)


def external(hnet):
    return [torch.randn(shape).double() for shape in hnet.param_shapes]


def not_the_conditions(inputs):
    # A network that takes noise only knows no conditions here, by default one there.
    return () if inputs[1] or inputs[2] else ("num_known_conds",)


@pytest.mark.parametrize("options", HMLP_OPTIONS, ids="-".join)
@pytest.mark.parametrize(("build", "inputs"), [*cases()])
def test_internal_weights(build, inputs, options):
    theirs, ours = twins(build(*inputs, options))
    assert_same_lists(theirs, ours, skip=not_the_conditions(inputs))
    assert (ours.has_fc_out, ours.has_linear_out) == (theirs.has_fc_out, theirs.has_linear_out)
    compare(theirs, ours, build, inputs)


@pytest.mark.parametrize(("build", "inputs"), [*cases()])
def test_external_weights_beside_internal_ones(build, inputs):
    theirs, ours = twins(build(*inputs, {}))
    full = external(ours)
    compare(theirs, ours, build, inputs, weights=full)
    refs = {
        "uncond_weights": ours.unconditional_param_shapes_ref,
        "cond_weights": ours.conditional_param_shapes_ref,
    }
    for keys in [("uncond_weights",), ("cond_weights",), tuple(refs)]:
        given = {key: [full[i] for i in refs[key]] for key in keys if refs[key]}
        if given:
            compare(theirs, ours, build, inputs, weights=given)


@pytest.mark.parametrize(
    ("build", "inputs"),
    # There such a container cannot be built, nor does the third kind of structured network run.
    [case for case in cases() if case.values[0] is not container and case.values != (structured, (2, 3, True, 3))],
)
def test_nothing_internal(build, inputs):
    theirs, ours = twins(build(*inputs, {"use_batch_norm": True}, **EXTERNAL))
    # The index of external records is wrong there.
    assert_same_lists(theirs, ours, skip=("param_shapes_meta", *not_the_conditions(inputs)))
    assert all(meta["index"] == -1 for meta in ours.param_shapes_meta)
    compare(theirs, ours, build, inputs, weights=external(ours))


@pytest.mark.parametrize(("build", "inputs"), [*cases()])
def test_batch_norm_in_training(build, inputs):
    """The statistics are those over all samples and chunks, and the running ones follow them."""
    theirs, ours = twins(build(*inputs, {"layers": (5,), "use_batch_norm": True}), mode="train")
    for condition, batch in conditions(build, *inputs):
        if batch == 1:
            continue
        z = torch.randn(batch, inputs[0]).double() if inputs[0] else None
        assert_same(*[hnet(z, **condition) for hnet in (theirs, ours)])
    assert_same(theirs.batchnorm_layers[0].get_stats(), ours.batchnorm_layers[0].get_stats())
    assert ours.batchnorm_layers[0].get_stats()[0].any()


@pytest.mark.parametrize(("build", "inputs"), [*cases()])
def test_gradients(build, inputs):
    theirs, ours = twins(build(*inputs, {}))
    condition, batch = conditions(build, *inputs)[-1]
    z = torch.randn(batch, inputs[0]).double() if inputs[0] else None
    direction = torch.randn(batch, ours.num_outputs).double()
    for hnet in (theirs, ours):
        (hnet(z, **condition, ret_format="flattened") * direction).sum().backward()
    for one, two in zip(theirs.internal_params, ours.internal_params, strict=True):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (one, two)]
        assert_same(*grads)


@pytest.mark.parametrize("conditional_input", [0, 3])
def test_chunk_embeddings_as_an_argument(conditional_input):
    theirs, ours = twins(chunked(2, conditional_input, True, 3, {}))
    z, embs = torch.randn(4, 2).double(), torch.randn(4, 4, 2).double()
    cond = torch.randn(4, 3).double() if conditional_input else None
    uncond = [torch.randn(shape).double() for shape in ours.unconditional_param_shapes]
    for lists in ({}, {"uncond_weights": uncond}):
        assert_same(*[hnet(z, cond, weights={**lists, "chunk_embs": embs}) for hnet in (theirs, ours)])


def test_access_to_embeddings():
    for build in (chunked, structured):
        for conditional, cond_id in ((False, None), (True, 2)):
            theirs, ours = twins(build(2, 3, conditional, 3, {}))
            assert_same(*[hnet.get_cond_in_emb(1).detach() for hnet in (theirs, ours)])
            if build is structured:
                assert ours.chunk_emb_shapes == theirs.chunk_emb_shapes
                one, two = (hnet.get_chunk_embs(cond_id=cond_id) for hnet in (theirs, ours))
                assert_same([p.detach() for p in one], [p.detach() for p in two])
            else:
                for chunk_id in (None, 0, 3):
                    one, two = (hnet.get_chunk_emb(chunk_id, cond_id) for hnet in (theirs, ours))
                    assert_same(one.detach(), two.detach())
            for name in ("num_chunks", "cond_chunk_embs"):
                assert getattr(ours, name) == getattr(theirs, name)


# ---------------------------------------------------------------------- wrappers


@pytest.mark.parametrize("options", HMLP_OPTIONS, ids="-".join)
@pytest.mark.parametrize(("build", "inputs"), [*cases()])
def test_wrapped(build, inputs, options):
    inner = build(*inputs, options)
    theirs, ours = twins(lambda library: library.HPerturbWrapper(inner(library), inputs[0], 0.3))
    assert_same_lists(theirs, ours, skip=not_the_conditions(inputs))
    assert (ours.has_fc_out, ours.has_linear_out) == (theirs.has_fc_out, theirs.has_linear_out) == (False, False)
    compare(theirs, ours, build, inputs, noise_size=ours.num_outputs)


# ---------------------------------------------------------------------- helpers


def inits(library):
    module = "hnet_helpers"
    names = ("get_conditional_parameters", "init_chunk_embeddings", "init_conditional_embeddings")
    return [reference(module, name) if isinstance(library, Theirs) else getattr(hnet_helpers, name) for name in names]


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize(("build", "inputs"), [*cases()])
def test_helpers(build, inputs, wrap):
    inner = build(*inputs, {})
    pair = twins(lambda library: library.HPerturbWrapper(inner(library), inputs[0]) if wrap else inner(library))
    calls = []
    for library, hnet in zip((Theirs(), hnets), pair, strict=True):
        get, init_chunks, init_conds = inits(library)
        seen = []

        def chunk_fct(emb, chunk_id, cond_id=None, seen=seen):
            seen.append((tuple(emb.shape), chunk_id, cond_id))
            torch.nn.init.constant_(emb, len(seen))

        def cond_fct(emb, cond_id, seen=seen):
            seen.append((tuple(emb.shape), cond_id))
            torch.nn.init.constant_(emb, -len(seen))

        quiet(init_chunks, hnet, init_fct=chunk_fct)
        quiet(init_conds, hnet, init_fct=cond_fct)
        calls.append(seen)
        # There it fails for containers, and returns None where chunk embeddings are all that is conditional.
        if build is not container and inputs[1]:
            own = get(hnet, 1)
            seen.append([[i for i, p in enumerate(hnet.conditional_params) if p is one] for one in own])
    assert calls[0] == calls[1]
    assert [p.tolist() for p in pair[0].internal_params] == [p.tolist() for p in pair[1].internal_params]


# ---------------------------------------------------------------------- where the reference is wrong


def ours(build, inputs=(2, 3, True, 3), options=None, **external):
    return build(*inputs, options or {}, **external)(hnets)


def run(hnet, batch=4, cond_id=(2, 0, 1, 1), **kwargs):
    z = torch.randn(batch, 2, generator=torch.Generator().manual_seed(1))
    return hnet(z, cond_id=cond_id, ret_format="flattened", **kwargs)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("key", ["no_uncond_weights", "no_cond_weights"])
def test_one_kind_of_external_weights(build, key):
    hnet, kept = ours(build, **{key: True}), ours(build)
    conditional = key == "no_cond_weights"
    external = [i for i, record in enumerate(hnet.param_table) if record.conditional is conditional]
    assert hnet.hyper_shapes_learned_ref == external
    for i, meta in enumerate(hnet.param_shapes_meta):
        assert (meta["index"] == -1) == (i in external)
    assert (hnet.conditional_params if conditional else hnet.unconditional_params) is None
    full = list(kept.internal_params)
    hnet.overwrite_internal_params([full[i] for i in range(len(full)) if i not in external])
    name = "cond_weights" if conditional else "uncond_weights"
    for weights in ([full[i] for i in external], {name: [full[i] for i in external]}):
        torch.testing.assert_close(run(hnet, weights=weights), run(kept))
    with pytest.raises(ArgumentError, match=f"weights: .* does not keep .* pass them as weights.'{name}'"):
        run(hnet)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_lists_without_entries_are_none(build):
    inside, outside = ours(build), ours(build, **EXTERNAL)
    assert inside.hyper_shapes_learned is None
    assert inside.hyper_shapes_learned_ref is None
    for name in ("internal_params", "internal_params_ref", "conditional_params", "unconditional_params"):
        assert getattr(outside, name) is None, name
    assert all(meta["index"] == -1 for meta in outside.param_shapes_meta)
    torch.testing.assert_close(run(outside, weights=list(inside.internal_params)), run(inside))


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_forms_of_cond_id(build):
    hnet, ids = ours(build), [2, 0, 1, 1]
    for form in (tuple(ids), np.array(ids), torch.tensor(ids), [np.int64(i) for i in ids]):
        assert torch.equal(run(hnet, cond_id=form), run(hnet, cond_id=ids))
    for form in (np.int64(1), torch.tensor(1)):
        assert torch.equal(run(hnet, cond_id=form), run(hnet, cond_id=1))
    with pytest.raises(ArgumentError, match="cond_id: -1 does not exist; .* conditions 0..2"):
        run(hnet, cond_id=-1)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_batch_of_one_is_broadcast(build):
    hnet = ours(build)
    torch.testing.assert_close(run(hnet, cond_id=1), run(hnet, cond_id=[1, 1, 1, 1]))
    z = torch.randn(1, 2)
    one, many = (hnet(rows, cond_id=[2, 0, 1, 1], ret_format="flattened") for rows in (z, z.expand(4, 2)))
    torch.testing.assert_close(one, many)
    wrapped = hnets.HPerturbWrapper(hnet)
    z = torch.randn(1, hnet.num_outputs)
    one, many = (wrapped(rows, cond_id=[2, 0, 1, 1], ret_format="flattened") for rows in (z, z.expand(4, -1)))
    torch.testing.assert_close(one, many)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_formats_can_be_converted(build):
    hnet = ours(build)
    flat = run(hnet)
    samples = hnet.convert_out_format(flat, "flattened", "sequential")
    assert [[list(t.shape) for t in sample] for sample in samples] == [hnet.target_shapes] * 4
    assert hnet.convert_out_format(samples[:1], "sequential", "squeezed") == samples[0]
    assert torch.equal(hnet.convert_out_format(samples, "squeezed", "flattened"), flat)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_evaluation_mode_and_names_reach_the_parts(build, capsys):
    hnet = ours(build, options={"dropout_rate": 0.5})
    assert not torch.equal(run(hnet), run(hnet))
    hnet.eval()
    assert torch.equal(run(hnet), run(hnet))
    assert len(hnet.state_dict()) == len(hnet.internal_params)  # one key per tensor
    assert hnet.distillation_targets() is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_conditional_parameters_of_every_class(build):
    for hnet in (ours(build), hnets.HPerturbWrapper(ours(build))):
        params = list(hnet.conditional_params)
        found = [hnet_helpers.get_conditional_parameters(hnet, i) for i in range(3)]
        assert sorted(id(p) for own in found for p in own) == sorted(map(id, params))
        for i, own in enumerate(found):
            # These and no others have a gradient.
            hnet.zero_grad()
            z = torch.randn(1, hnet.uncond_in_size)
            hnet(z, cond_id=i, ret_format="flattened").square().sum().backward()
            assert [p is q for p, q in zip(own, (p for p in params if p.grad is not None), strict=True)]
    assert hnet_helpers.get_conditional_parameters(ours(build, no_cond_weights=True), 1) == []

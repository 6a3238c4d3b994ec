from __future__ import annotations

import contextlib
import copy
import importlib
import io
import itertools
import pickle
import warnings

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.structured_hmlp_examples import resnet_chunking, wrn_chunking
from bayeshnet.mnets import WRN, ResNet

RESNET = {"in_shape": (8, 8, 1), "num_classes": 3, "n": 2, "num_feature_maps": (2, 4, 4, 6), "verbose": False}
WIDE = {"in_shape": (8, 8, 1), "num_classes": 3, "n": 2, "k": 1, "verbose": False}

RESNETS = [
    {},
    {"use_bias": False},
    {"use_batch_norm": False},
    {"use_bias": False, "use_batch_norm": False},
    {"k": 3},
    {"num_feature_maps": (4, 4, 4, 4)},
    {"num_feature_maps": (3, 4, 6, 8), "n": 1},
]
WRNS = [
    {**flags, "num_feature_maps": maps}
    for flags, maps in itertools.product(
        ({"use_bias": False, "use_fc_bias": True}, {"use_bias": True}, {"use_bias": True, "use_batch_norm": False}),
        # Factors between groups: 2 and 3; 1 and 3/2; 1/3, 2/3 and 1; 6 and 1/2; all in one.
        ((2, 4, 8, 24), (2, 2, 6, 9), (9, 3, 2, 2), (1, 6, 3, 3), (6, 5, 15, 8)),
    )
]
# With use_fc_bias=False and biases elsewhere, or without any bias, the reference fails.
WRNS_HERE_ONLY = [{"use_bias": False}, {"use_bias": True, "use_fc_bias": False}]
WRN_FLAGS = [
    dict(zip(("ignore_bn_weights", "ignore_out_weights", "gcd_chunking"), flags, strict=True))
    for flags in itertools.product([False, True], repeat=3)
]


def draw_chunks(shapes, nums):
    return [
        [torch.randn(shape) for shape in chunk] for chunk, num in zip(shapes, nums, strict=True) for _ in range(num)
    ]


def reference(module, name):
    pytest.importorskip("hypnettorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(importlib.import_module(f"hypnettorch.{module}"), name)
        except ImportError as error:
            pytest.skip(f"hypnettorch: {error}")


def quiet(make, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def targets_of(net, flags):
    """What remains of ``param_shapes`` with the options of ``wrn_chunking``."""
    last = max(meta["layer"] for meta in net.param_shapes_meta)
    return [
        shape
        for shape, meta in zip(net.param_shapes, net.param_shapes_meta, strict=True)
        if not (flags.get("ignore_bn_weights", True) and meta["name"].startswith("bn"))
        and not (flags.get("ignore_out_weights", True) and meta["layer"] == last)
    ]


# ---------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("gcd", [False, True])
@pytest.mark.parametrize("options", RESNETS)
def test_resnet_as_the_reference(options, gcd):
    theirs = quiet(reference("mnets.resnet", "ResNet"), **{**RESNET, **options})
    chunking = reference("hnets.structured_hmlp_examples", "resnet_chunking")
    shapes, nums, assembly = quiet(chunking, theirs, gcd_chunking=gcd)
    ours = resnet_chunking(ResNet(**{**RESNET, **options}), gcd_chunking=gcd)
    assert ours[0] == [[list(shape) for shape in chunk] for chunk in shapes]
    assert ours[1] == nums
    chunks = draw_chunks(shapes, nums)
    torch.testing.assert_close(ours[2](chunks), assembly(chunks), rtol=0, atol=0)


@pytest.mark.parametrize("options", WRNS)
def test_wrn_as_the_reference(options):
    theirs = quiet(reference("mnets.wide_resnet", "WRN"), **{**WIDE, **options})
    chunking = reference("hnets.structured_hmlp_examples", "wrn_chunking")
    for flags in WRN_FLAGS:
        if options.get("use_batch_norm") is False and not flags["ignore_bn_weights"]:
            continue  # nothing to ignore: there an error
        shapes, nums, assembly = quiet(chunking, theirs, **flags)
        ours = wrn_chunking(WRN(**{**WIDE, **options}), **flags)
        assert ours[0] == [[list(shape) for shape in chunk] for chunk in shapes]
        assert ours[1] == nums
        chunks = draw_chunks(shapes, nums)
        torch.testing.assert_close(ours[2](chunks), assembly(chunks), rtol=0, atol=0)


# ---------------------------------------------------------------------- on their own


def test_resnet_32():
    net = ResNet(no_weights=True)
    shapes, nums, _ = resnet_chunking(net)
    assert nums == [1, 1, 9, 1, 9, 1, 9, 1]
    assert shapes[0] == [[16, 3, 3, 3], [16], [16], [16]]
    assert shapes[-1] == [[10, 64], [10]]
    shapes, nums, _ = resnet_chunking(net, gcd_chunking=True)
    assert nums == [1, 1, 9 + 2, 9 * 2 + 4, 9 * 4, 1]
    assert shapes[1:-1] == [[[16, c, 3, 3], [16], [16], [16]] for c in (16, 16, 32, 64)]


def test_wrn_28_10_covers_what_it_should():
    net = WRN(use_bias=False, use_fc_bias=True, no_weights=True)
    shapes, nums, assembly = wrn_chunking(net)
    # 16 to 160 channels: a factor of 10, an internal network for the first convolution. Then 2, twice.
    assert list(zip(nums, shapes, strict=True)) == [
        (1, [[16, 3, 3, 3]]),
        (1, [[160, 16, 3, 3]]),
        (7, [[160, 160, 3, 3]]),
        (15, [[320, 160, 3, 3]]),
        (15, [[640, 320, 3, 3]]),
        (1, [[160, 16, 1, 1]]),
        (1, [[320, 160, 1, 1]]),
        (1, [[640, 320, 1, 1]]),
    ]
    chunks = [
        [torch.empty(s, device="meta") for s in c] for c, num in zip(shapes, nums, strict=True) for _ in range(num)
    ]
    targets = assembly(chunks)
    assert [list(t.shape) for t in targets] == targets_of(net, {})
    assert sum(t.numel() for t in targets) == 36_454_832


@pytest.mark.parametrize("options", [*WRNS, *WRNS_HERE_ONLY])
def test_wrn_has_the_shapes_of_the_network(options):
    net = WRN(**{**WIDE, **options})
    for flags in WRN_FLAGS:
        shapes, nums, assembly = wrn_chunking(net, **flags)
        targets = assembly(draw_chunks(shapes, nums))
        assert [list(t.shape) for t in targets] == targets_of(net, flags)
        if not any((flags["ignore_bn_weights"], flags["ignore_out_weights"])):
            assert net(torch.rand(2, 64), weights=targets).shape == (2, 3)


def test_resnet_has_the_shapes_of_the_network_and_uses_everything():
    for options, gcd in itertools.product(RESNETS, [False, True]):
        net = ResNet(**{**RESNET, **options})
        shapes, nums, assembly = resnet_chunking(net, gcd_chunking=gcd)
        chunks = draw_chunks(shapes, nums)
        targets = assembly(chunks)
        assert [list(t.shape) for t in targets] == net.param_shapes
        produced = torch.cat([t.flatten() for chunk in chunks for t in chunk]).sort().values
        assert torch.equal(torch.cat([t.flatten() for t in targets]).sort().values, produced)


def test_only_the_first_bias_of_a_layer_is_used():
    net = WRN(**WIDE, num_feature_maps=(2, 4, 4, 4), use_bias=True)
    shapes, nums, assembly = wrn_chunking(net, ignore_bn_weights=False)
    assert (nums[1], shapes[1]) == (7, [[4, 2, 3, 3], [4], [4], [4]])  # 1 + 3 * 2 chunks for four layers
    chunks = draw_chunks(shapes, nums)
    targets = assembly(chunks)
    names = [(m["name"], m["layer"]) for m in net.param_shapes_meta]
    convs = [m["layer"] for s, m in zip(net.param_shapes, net.param_shapes_meta, strict=True) if s[2:] == [3, 3]]
    # The third 3x3 convolution is the second of its group: chunks 2 and 3.
    weight, bias = targets[names.index(("weight", convs[2]))], targets[names.index(("bias", convs[2]))]
    torch.testing.assert_close(weight, torch.cat([chunks[2][0], chunks[3][0]], 1), rtol=0, atol=0)
    assert torch.equal(bias, chunks[2][1])
    assert not torch.equal(bias, chunks[3][1])
    assert torch.equal(targets[4], chunks[2][2])  # scale and shift of the third batch norm
    assert torch.equal(targets[5], chunks[2][3])


def test_whole_tensors_are_not_copied():
    shapes, nums, assembly = resnet_chunking(ResNet(**RESNET))
    chunks = draw_chunks(shapes, nums)
    given = {id(tensor) for chunk in chunks for tensor in chunk}
    assert {id(target) for target in assembly(chunks)} == given


@pytest.mark.parametrize("gcd", [False, True])
def test_batches_under_vmap(gcd):
    net = WRN(**WIDE, num_feature_maps=(2, 4, 6, 6))
    shapes, nums, assembly = wrn_chunking(net, ignore_bn_weights=False, ignore_out_weights=False, gcd_chunking=gcd)
    samples = [draw_chunks(shapes, nums) for _ in range(3)]
    stacked = [[torch.stack(ts) for ts in zip(*chunk, strict=True)] for chunk in zip(*samples, strict=True)]
    for i, target in enumerate(torch.func.vmap(assembly)(stacked)):
        torch.testing.assert_close(target, torch.stack([assembly(chunks)[i] for chunks in samples]), rtol=0, atol=0)


def test_copies():
    net = ResNet(**RESNET)
    shapes, nums, assembly = resnet_chunking(net, gcd_chunking=True)
    chunks = draw_chunks(shapes, nums)
    for other in (copy.deepcopy(assembly), pickle.loads(pickle.dumps(assembly))):
        assert other == assembly
        torch.testing.assert_close(other(chunks), assembly(chunks), rtol=0, atol=0)


def test_modulated_network_takes_the_weights_of_a_plain_one():
    plain, modulated = ResNet(**RESNET), ResNet(**RESNET, use_context_mod=True)
    shapes, nums, assembly = resnet_chunking(plain)
    weights = assembly(draw_chunks(shapes, nums))
    plain.eval()
    modulated.eval()  # its gains and shifts start as the identity
    x = torch.rand(3, 64)
    out = modulated(x, weights={"internal_weights": weights})
    torch.testing.assert_close(out, plain(x, weights=weights))


def test_errors():
    resnet, wrn = ResNet(**RESNET), WRN(**WIDE)
    with pytest.raises(ArgumentTypeError, match=r"net: is a WRN; pass a bayeshnet.mnets.ResNet"):
        resnet_chunking(wrn)
    with pytest.raises(ArgumentTypeError, match=r"net: is a ResNet; pass a bayeshnet.mnets.WRN"):
        wrn_chunking(resnet)
    with pytest.raises(ArgumentError, match="net: has context modulation, whose gains and shifts no chunk covers"):
        resnet_chunking(ResNet(**RESNET, use_context_mod=True))
    with pytest.raises(ArgumentError, match="use_context_mod=False"):
        wrn_chunking(WRN(**WIDE, use_context_mod=True))
    _, _, assembly = resnet_chunking(resnet)
    with pytest.raises(ArgumentError, match="list_of_chunks: has 1 chunks; pass 14, the sum"):
        assembly([[torch.ones(1)]])


@pytest.mark.parametrize("options", [{}, {"gcd_chunking": True}])
def test_what_is_not_used_is_freed(options):
    """No target keeps the memory of the chunks alive that were joined elsewhere."""
    net = WRN(n=1, k=2, num_feature_maps=(4, 4, 8, 16), use_bias=False, no_weights=True)
    shapes, nums, assembly = wrn_chunking(net, **options)
    made = [[torch.zeros(num, *shape).unbind(0) for shape in chunk] for chunk, num in zip(shapes, nums, strict=True)]
    chunks = [list(chunk) for tensors in made for chunk in zip(*tensors, strict=True)]
    targets = assembly(chunks)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in targets}
    assert sum(storages.values()) == 4 * sum(t.numel() for t in targets)

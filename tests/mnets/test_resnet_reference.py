"""Differential tests of ResNet and WRN against hypnettorch 0.0.4, skipped where it is not installed."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import warnings

import pytest
import torch

from bayeshnet.mnets import WRN, ResNet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:hypnettorch")

# 9 x 8 pixels: strides meet odd sizes. 2 to 6 channels and so on: zeros on both sides, sometimes one more on one side.
SMALL = {"in_shape": (9, 8, 2), "num_classes": 4, "n": 2, "k": 2, "num_feature_maps": (2, 3, 4, 7)}

OPTIONS = [
    {},
    {"k": 1},
    {"k": 1, "num_feature_maps": (3, 3, 4, 6)},  # no new channels in the first group
    {"in_shape": (32, 32, 3), "n": 1},
    {"use_batch_norm": False},
    {"use_bias": False},
    {"use_bias": False, "use_batch_norm": False},
    {"bn_track_stats": False},
    {"distill_bn_stats": True},
    *[
        {
            "use_context_mod": True,
            **dict(zip(("context_mod_inputs", "context_mod_post_activation"), flags, strict=True)),
        }
        for flags in itertools.product([False, True], repeat=2)
    ],
    {"use_context_mod": True, "context_mod_apply_pixel_wise": True, "context_mod_inputs": True},
    {"use_context_mod": True, "context_mod_gain_offset": True, "no_last_layer_context_mod": True},
    {"use_context_mod": True, "context_mod_gain_softplus": True, "use_batch_norm": False},
    {"use_context_mod": True, "context_mod_no_weights": True},
]
WRN_OPTIONS = [
    {"dropout_rate": 0.3},
    {"dropout_rate": 0.3, "use_context_mod": True},
    {"use_fc_bias": False},
    {"use_bias": False, "use_fc_bias": True},
    {"num_feature_maps": (4, 4, 3, 2)},
    {"chw_input_format": True},
]


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("hypnettorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return {
                ResNet: importlib.import_module("hypnettorch.mnets.resnet").ResNet,
                WRN: importlib.import_module("hypnettorch.mnets.wide_resnet").WRN,
            }
        except ImportError as error:
            pytest.skip(f"hypnettorch cannot be imported: {error}")


def build(cls, options):
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(**{**SMALL, **options}).double()


def run(net, x, **options):
    torch.manual_seed(1)  # for dropout
    return net(x, **options)


CASES = [(ResNet, o) for o in OPTIONS] + [(WRN, o) for o in [*OPTIONS, *WRN_OPTIONS]]


@pytest.mark.parametrize(("cls", "options"), CASES, ids=[f"{c.__name__}-{i}" for i, (c, _) in enumerate(CASES)])
def test_same_parameters_and_outputs(reference, cls, options):
    theirs, ours = build(reference[cls], options), build(cls, options)
    assert ours.param_shapes == theirs.param_shapes
    for ours_meta, theirs_meta in zip(ours.param_shapes_meta, theirs.param_shapes_meta, strict=True):
        assert ours_meta["name"] == theirs_meta["name"]
        assert ours_meta["index"] == theirs_meta["index"]
    for name in ("hyper_shapes_learned", "hyper_shapes_distilled", "hyper_shapes_learned_ref"):
        assert getattr(ours, name) == (getattr(theirs, name) or None)
    assert (ours.num_params, ours.num_internal_params) == (theirs.num_params, theirs.num_internal_params)
    # From the same seed they even start the same.
    torch.testing.assert_close(list(ours.internal_params), list(theirs.internal_params), rtol=0, atol=0)
    height, width, channels = {**SMALL, **options}["in_shape"]
    x = torch.rand(5, height * width * channels, dtype=torch.float64)
    if options.get("chw_input_format"):
        x = x.view(5, channels, height, width)  # there rows are refused
    weights = [torch.randn(shape, dtype=torch.float64) / 2 for shape in ours.param_shapes]
    internal = ours.hyper_shapes_learned is None
    # Training twice, so that evaluation has statistics that both networks have gathered.
    for training, given in itertools.product([True, False], [None, weights] if internal else [weights]):
        ours.train(training)
        theirs.train(training)
        expected = run(theirs, x, weights=given)
        torch.testing.assert_close(run(ours, x, weights=given), expected, rtol=1e-8, atol=1e-10)
    if options.get("distill_bn_stats"):
        targets = theirs.distillation_targets()
        torch.testing.assert_close(ours.distillation_targets(), targets)
        stats = [torch.rand_like(s) + 0.5 for s in targets]
        expected = run(theirs, x, distilled_params=stats)
        torch.testing.assert_close(run(ours, x, distilled_params=stats), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("cls", [ResNet, WRN])
def test_same_in_float32(reference, cls):
    options = {"in_shape": (32, 32, 3), "n": 2, "k": 1, "num_feature_maps": (16, 16, 32, 64), "num_classes": 10}
    theirs, ours = build(reference[cls], options).float().eval(), build(cls, options).float().eval()
    x = torch.rand(4, 3072)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [ResNet, WRN])
def test_same_conditions(reference, cls):
    # Checkpoints of gains and shifts are not compared: there WRN refuses them and ResNet ignores them.
    theirs, ours = build(reference[cls], {}), build(cls, {})
    x = torch.rand(5, 144, dtype=torch.float64)
    for net in (ours, theirs):
        net(x)
        for layer in net.batchnorm_layers:
            layer.checkpoint_stats()
        net.double()  # there new statistics are in single precision
        net(-x)
        net.eval()
    for condition in (None, 0, 1, {"bn_stats_id": 0}):
        expected = theirs(x, condition=condition)
        torch.testing.assert_close(ours(x, condition=condition), expected, rtol=1e-8, atol=1e-10)


def test_same_masks(reference):
    for cls in (ResNet, WRN):
        masks = build(reference[cls], {}).get_output_weight_mask(out_inds=[1])
        for mask, expected in zip(build(cls, {}).get_output_weight_mask(out_inds=[1]), masks, strict=True):
            assert (mask is None and expected is None) or torch.equal(mask, expected.bool())

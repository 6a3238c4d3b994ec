"""Networks of the reference's style, on the base classes of both packages."""

from __future__ import annotations

import torch

from tests.mnets.third_party import networks, quiet

OURS = networks("bayeshnet")
MAIN = {
    "LeNet": ("LeNet", {}),
    "LeNet without weights": ("LeNet", {"no_weights": True}),
    "LeNet without biases": ("LeNet", {"use_bias": False}),
    "LeNet, modulated": ("LeNet", {"use_context_mod": True}),
    "LeNet, modulated from outside": ("LeNet", {"use_context_mod": True, "context_mod_no_weights": True}),
    "SimpleRNN": ("SimpleRNN", {}),
    "SimpleRNN without weights": ("SimpleRNN", {"no_weights": True}),
    "IntervalMLP": ("IntervalMLP", {}),
    "IntervalMLP without weights": ("IntervalMLP", {"no_weights": True}),
    "IntervalMLP without biases": ("IntervalMLP", {"use_bias": False}),
    "MaskedMLP": ("MaskedMLP", {}),
    "MaskedMLP without meta": ("MaskedMLP", {"meta": False}),
    "ResidualNet": ("ResidualNet", {}),
    "ResidualNet without weights": ("ResidualNet", {"no_weights": True}),
    "ResidualNet, statistics": ("ResidualNet", {"distill_bn_stats": True}),
}
HYPER = {
    "OwnHnet": ("OwnHnet", {"target_shapes": [[2, 2], [2]]}),
    "OwnHnet without weights": ("OwnHnet", {"target_shapes": [[2, 2], [2]], "external": True}),
    "OwnHnet without conditions": ("OwnHnet", {"target_shapes": [[3]], "num_conds": 0, "n_cond": 0}),
}
INPUTS = {
    "LeNet": (7, 64),
    "SimpleRNN": (5, 7, 2),
    "IntervalMLP": (7, 3),
    "MaskedMLP": (7, 4),
    "ResidualNet": (7, 3),
}
LISTS = [
    *(
        "param_shapes",
        "param_shapes_meta",
        "hyper_shapes_learned",
        "hyper_shapes_learned_ref",
        "hyper_shapes_distilled",
    ),
    *("has_bias", "has_fc_out", "mask_fc_out", "has_linear_out", "num_params", "num_internal_params"),
]
TENSORS = ["internal_params", "layer_weight_tensors", "layer_bias_vectors"]
HYPER_LISTS = [
    *("target_shapes", "num_outputs", "num_known_conds", "unconditional_param_shapes", "conditional_param_shapes"),
    *("unconditional_param_shapes_ref", "conditional_param_shapes_ref", "unconditional_params_ref"),
]
HYPER_TENSORS = ["unconditional_params", "conditional_params"]


def make(library, name, options):
    torch.manual_seed(0)
    with quiet():
        return networks(library)[name](**options).double()


def all_weights(net):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.double) for shape in net.param_shapes]


def external_weights(net):
    return None if net.hyper_shapes_learned is None else [all_weights(net)[i] for i in net.hyper_shapes_learned_ref]


def shapes(tensors):
    return None if tensors is None else [list(tensor.shape) for tensor in tensors]


def assign(**attributes):
    def change(net):
        for name, value in attributes.items():
            setattr(net, name, value)

    return change

"""Networks as users of the reference write them, on the interfaces of either library.

``networks("bayeshnet")`` and ``networks("hypnettorch")`` give the same class bodies. Nothing here knows of this
package: no records, no formats, private lists that are filled by hand.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F


@contextlib.contextmanager
def quiet():
    """The reference prints, and warns of what NumPy deprecates."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def networks(library):
    with quiet():
        MainNetInterface = importlib.import_module(f"{library}.mnets.mnet_interface").MainNetInterface
        HyperNetInterface = importlib.import_module(f"{library}.hnets.hnet_interface").HyperNetInterface

    class LeNet(nn.Module, MainNetInterface):
        """Two convolutions, two linear layers; context modulation by the interface's helpers."""

        def __init__(self, in_shape=(8, 8, 1), num_classes=3, no_weights=False, use_bias=True, **kwargs):
            nn.Module.__init__(self)
            MainNetInterface.__init__(self)
            unknown = MainNetInterface._parse_context_mod_args(kwargs)
            assert not unknown, unknown
            for key, value in kwargs.items():
                setattr(self, f"_{key}", value)
            assert self._internal_params is None
            assert self._layer_weight_tensors is None
            self._in_shape = in_shape
            self._no_weights = no_weights
            self._has_bias = use_bias
            self._has_fc_out = True
            self._mask_fc_out = True
            self._has_linear_out = True
            self._param_shapes = []
            self._param_shapes_meta = []
            self._internal_params = None if no_weights and self._context_mod_no_weights else nn.ParameterList()
            self._hyper_shapes_learned = [] if no_weights or self._context_mod_no_weights else None
            self._hyper_shapes_learned_ref = None if self._hyper_shapes_learned is None else []
            self._layer_weight_tensors = nn.ParameterList()
            self._layer_bias_vectors = nn.ParameterList()
            if self._use_context_mod:
                self._context_mod_layers = nn.ModuleList()
                self._add_context_mod_layers([[4, 1, 1], [6, 1, 1]], cm_layers=[2, 4])
            shapes = [[4, 1, 3, 3], [6, 4, 3, 3], [5, 24], [num_classes, 5]]
            for i, shape in enumerate(shapes):
                for name, s in (("weight", shape), ("bias", shape[:1])):
                    if name == "bias" and not use_bias:
                        continue
                    if no_weights:
                        self.hyper_shapes_learned.append(s)
                        self.hyper_shapes_learned_ref.append(len(self.param_shapes))
                    else:
                        param = nn.Parameter(torch.empty(s))
                        self._internal_params.append(param)
                        (self._layer_weight_tensors if name == "weight" else self._layer_bias_vectors).append(param)
                    self.param_shapes.append(s)
                    self.param_shapes_meta.append(
                        {
                            "name": name,
                            "index": -1 if no_weights else len(self._internal_params) - 1,
                            "layer": 2 * i + 1,
                        }
                    )
            if not no_weights:
                for i, weight in enumerate(self._layer_weight_tensors):
                    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
                    if use_bias:
                        nn.init.uniform_(self._layer_bias_vectors[i], -0.3, 0.3)
            self._is_properly_setup()

        def distillation_targets(self):
            return None

        def forward(self, x, weights=None, distilled_params=None, condition=None):
            num_cm = self._num_context_mod_shapes()
            mods = None
            if weights is None:
                if self._no_weights:
                    raise Exception("Network was generated without weights.")
                weights = list(self.internal_params)[0 if self._context_mod_no_weights else num_cm :]
            elif len(weights) == len(self.param_shapes):
                mods, weights = weights[:num_cm], weights[num_cm:]
            elif len(weights) == num_cm:
                mods, weights = weights, list(self.internal_params)
            step = 2 if self.has_bias else 1
            height, width, channels = self._in_shape
            h = x.view(-1, height, width, channels).permute(0, 3, 1, 2)
            for i in range(4):
                weight, bias = weights[step * i], weights[step * i + 1] if self.has_bias else None
                h = F.linear(h, weight, bias) if i > 1 else F.conv2d(h, weight, bias, padding=1)
                if i < 2 and self._use_context_mod:
                    own = None if mods is None else mods[2 * i : 2 * i + 2]
                    h = self.context_mod_layers[i](h, weights=own)
                h = h if i == 3 else torch.relu(h)
                h = F.max_pool2d(h, 2) if i < 2 else h
                h = h.flatten(1) if i == 1 else h
            return h

    class SimpleRNN(nn.Module, MainNetInterface):
        """An Elman network, ``_weights`` and ``_hyper_shapes`` as in old code, layers by ``_add_fc_layers``."""

        def __init__(self, n_in=2, n_hidden=4, n_out=3, no_weights=False):
            nn.Module.__init__(self)
            MainNetInterface.__init__(self)
            self._has_bias = True
            self._has_fc_out = self._mask_fc_out = self._has_linear_out = True
            self._internal_params = None if no_weights else nn.ParameterList()
            self._param_shapes, self._param_shapes_meta = [], []
            if no_weights:
                self._hyper_shapes_learned, self._hyper_shapes_learned_ref = [], []
            self._n_hidden = n_hidden
            self._add_fc_layers(
                [n_in, n_hidden, n_hidden], [n_hidden, n_hidden, n_out], no_weights, fc_layers=[1, 2, 3]
            )
            if not no_weights:
                self._weights, self._internal_params = self._internal_params, None
            else:
                self._hyper_shapes, self._hyper_shapes_learned = self._hyper_shapes_learned, None
            self._all_shapes, self._param_shapes = self._param_shapes, None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._is_properly_setup()

        def distillation_targets(self):
            return None

        def forward(self, x, weights=None, distilled_params=None, condition=None):
            w_in, b_in, w_rec, b_rec, w_out, b_out = self.internal_params if weights is None else weights
            h = x.new_zeros(x.shape[1], self._n_hidden)
            outputs = []
            for x_t in x:
                h = torch.tanh(F.linear(x_t, w_in, b_in) + F.linear(h, w_rec, b_rec))
                outputs.append(F.linear(h, w_out, b_out))
            return torch.stack(outputs)

    class IntervalMLP(nn.Module, MainNetInterface):
        """Bounds of the outputs over a box of inputs. No meta data."""

        def __init__(self, n_in=3, n_out=2, hidden=(5,), no_weights=False, use_bias=True):
            super().__init__()
            MainNetInterface.__init__(self)
            assert self._param_shapes_meta is None
            self._has_bias, self._has_fc_out, self._mask_fc_out, self._has_linear_out = use_bias, True, True, True
            widths = [n_in, *hidden, n_out]
            self._param_shapes = []
            for fan_in, fan_out in itertools.pairwise(widths):
                self._param_shapes += [[fan_out, fan_in]] + ([[fan_out]] if use_bias else [])
            self._layer_weight_tensors = nn.ParameterList()
            self._layer_bias_vectors = nn.ParameterList()
            if no_weights:
                self._hyper_shapes_learned = self._param_shapes
                self._hyper_shapes_learned_ref = list(range(len(self._param_shapes)))
            else:
                self._internal_params = nn.ParameterList()
                for shape in self._param_shapes:
                    param = nn.Parameter(0.5 * torch.randn(*shape))
                    self._internal_params.append(param)
                    (self._layer_weight_tensors if len(shape) == 2 else self._layer_bias_vectors).append(param)
            self._is_properly_setup()

        def distillation_targets(self):
            return None

        def forward(self, x, weights=None, distilled_params=None, condition=None, radius=0.1):
            weights = self.internal_params if weights is None else weights
            step = 2 if self.has_bias else 1
            mid, rad = x, torch.full_like(x, radius)
            for i in range(0, len(weights), step):
                bias = weights[i + 1] if self.has_bias else None
                mid, rad = F.linear(mid, weights[i], bias), F.linear(rad, weights[i].abs())
                if i + step < len(weights):
                    low, high = torch.relu(mid - rad), torch.relu(mid + rad)
                    mid, rad = (high + low) / 2, (high - low) / 2
            return torch.cat([mid - rad, mid + rad], dim=1)

    class MaskedMLP(nn.Module, MainNetInterface):
        """Sparse weight matrices by a mask of its own; biases behind all matrices, so that internal order differs."""

        def __init__(self, n_in=4, n_hidden=6, n_out=3, sparsity=0.5, meta=True):
            nn.Module.__init__(self)
            MainNetInterface.__init__(self)
            self._has_bias = self._has_fc_out = self._mask_fc_out = self._has_linear_out = True
            weights = [nn.Parameter(torch.randn(n_hidden, n_in)), nn.Parameter(torch.randn(n_out, n_hidden))]
            biases = [nn.Parameter(torch.randn(n_hidden)), nn.Parameter(torch.randn(n_out))]
            self._layer_weight_tensors = nn.ParameterList(weights)
            self._layer_bias_vectors = nn.ParameterList(biases)
            self._param_shapes = [[n_hidden, n_in], [n_hidden], [n_out, n_hidden], [n_out]]
            if meta:
                self._internal_params = nn.ParameterList([*weights, *biases])
                self._param_shapes_meta = [
                    {"name": name, "index": index, "layer": layer}
                    for name, index, layer in [("weight", 0, 1), ("bias", 2, 1), ("weight", 1, 2), ("bias", 3, 2)]
                ]
            else:
                self._internal_params = nn.ParameterList([weights[0], biases[0], weights[1], biases[1]])
            for i, weight in enumerate(weights):
                generator = torch.Generator().manual_seed(i)
                self.register_buffer(f"_mask_{i}", (torch.rand(weight.shape, generator=generator) > sparsity).float())
            self._is_properly_setup()

        def distillation_targets(self):
            return None

        def forward(self, x, weights=None, distilled_params=None, condition=None):
            if weights is None:
                (w1, w2), (b1, b2) = self.layer_weight_tensors, self.layer_bias_vectors
            else:
                w1, b1, w2, b2 = weights
            return F.linear(torch.relu(F.linear(x, w1 * self._mask_0, b1)), w2 * self._mask_1, b2)

    class ResidualNet(nn.Module, MainNetInterface):
        """Blocks ``h + W2 relu(bn(W1 h))`` with batch norm by the interface's helper."""

        def __init__(self, n_in=3, width=4, blocks=2, n_out=2, no_weights=False, distill_bn_stats=False):
            nn.Module.__init__(self)
            MainNetInterface.__init__(self)
            self._has_bias, self._has_fc_out, self._mask_fc_out, self._has_linear_out = False, True, True, True
            self._blocks, self._no_weights = blocks, no_weights
            self._param_shapes, self._param_shapes_meta = [], []
            self._layer_weight_tensors, self._layer_bias_vectors = nn.ParameterList(), nn.ParameterList()
            if no_weights:
                self._hyper_shapes_learned, self._hyper_shapes_learned_ref = [], []
            else:
                self._internal_params = nn.ParameterList()
            self._add_batchnorm_layers(
                [width] * blocks,
                no_weights,
                bn_layers=[3 * i + 3 for i in range(blocks)],
                distill_bn_stats=distill_bn_stats,
            )
            ins = [n_in] + [width] * (2 * blocks + 1)
            outs = [width] * (2 * blocks + 1) + [n_out]
            numbers = [1, *[n for i in range(blocks) for n in (3 * i + 2, 3 * i + 4)], 3 * blocks + 2]
            self._add_fc_layers(ins, outs, no_weights, fc_layers=numbers)
            self._is_properly_setup(check_has_bias=True)

        def distillation_targets(self):
            if self.hyper_shapes_distilled is None:
                return None
            return [stat for layer in self.batchnorm_layers for stat in layer.get_stats()]

        def forward(self, x, weights=None, distilled_params=None, condition=None):
            weights = list(self.internal_params if weights is None else weights)
            norms, layers = weights[: 2 * self._blocks], weights[2 * self._blocks :]
            h = F.linear(x, layers[0])
            for i in range(self._blocks):
                mean, var = (None, None) if distilled_params is None else distilled_params[2 * i : 2 * i + 2]
                inner = self.batchnorm_layers[i](
                    F.linear(h, layers[2 * i + 1]),
                    running_mean=mean,
                    running_var=var,
                    weight=norms[2 * i],
                    bias=norms[2 * i + 1],
                    stats_id=condition,
                )
                h = h + F.linear(torch.relu(inner), layers[2 * i + 2])
            return F.linear(h, layers[-1])

    class OwnHnet(nn.Module, HyperNetInterface):
        """A hypernetwork with a ``forward`` of its own: ``W2 act(W1 [u, e_i] + b1)``; embeddings come last."""

        def __init__(
            self, target_shapes, n_uncond=3, n_cond=2, num_conds=2, hidden=6, act=None, dropout=-1, external=False
        ):
            nn.Module.__init__(self)
            HyperNetInterface.__init__(self)
            assert self._num_known_conds is None
            assert self._unconditional_param_shapes_ref is None
            self._act_fn = nn.Tanh() if act is None else act
            self._use_batch_norm = False
            self._dropout_rate = dropout
            self._target_shapes = target_shapes
            self._num_known_conds = num_conds
            self._has_bias, self._has_fc_out, self._mask_fc_out, self._has_linear_out = False, True, False, True
            self.uncond_in_size, self.cond_in_size = n_uncond, n_cond
            num = MainNetInterface.shapes_to_num_weights(target_shapes)
            kinds = [("weight", [hidden, n_uncond + n_cond], 1), ("bias", [hidden], 1), ("weight", [num, hidden], 2)]
            kinds += [("embedding", [n_cond], 0)] * num_conds
            self._param_shapes = [shape for _, shape, _ in kinds]
            self._internal_params = nn.ParameterList()
            self._param_shapes_meta = []
            self._layer_weight_tensors, self._layer_bias_vectors = nn.ParameterList(), nn.ParameterList()
            self._hyper_shapes_learned = [] if external else None
            self._hyper_shapes_learned_ref = [] if external else None
            for i, (name, shape, layer) in enumerate(kinds):
                index = -1
                if external and name != "embedding":
                    self._hyper_shapes_learned.append(shape)
                    self._hyper_shapes_learned_ref.append(i)
                else:
                    index = len(self._internal_params)
                    self._internal_params.append(nn.Parameter(0.5 * torch.randn(*shape)))
                    if name == "weight":
                        self._layer_weight_tensors.append(self._internal_params[-1])
                    elif name == "bias":
                        self._layer_bias_vectors.append(self._internal_params[-1])
                self._param_shapes_meta.append({"name": name, "index": index, "layer": layer})
            self._unconditional_param_shapes_ref = [0, 1, 2]
            self._is_properly_setup()

        @property
        def activation(self):
            return self._act_fn

        def distillation_targets(self):
            return None

        def forward(
            self,
            uncond_input=None,
            cond_input=None,
            cond_id=None,
            weights=None,
            distilled_params=None,
            condition=None,
            ret_format="squeezed",
        ):
            u, e, uncond_weights, _ = self._preprocess_forward_args(
                uncond_input=uncond_input,
                cond_input=cond_input,
                cond_id=cond_id,
                weights=weights,
                distilled_params=distilled_params,
                condition=condition,
                ret_format=ret_format,
            )
            x = torch.cat([part for part in (u, e) if part is not None], dim=1)
            w1, b1, w2 = uncond_weights
            h = F.linear(x, w1, b1)
            if self._dropout_rate != -1:
                h = F.dropout(h, self._dropout_rate, training=self.training)
            return self._flat_to_ret_format(F.linear(self.activation(h), w2), ret_format)

    return {cls.__name__: cls for cls in (LeNet, SimpleRNN, IntervalMLP, MaskedMLP, ResidualNet, OwnHnet)}

"""A hypernetwork whose output is an image made by transposed convolutions; its pixels are the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.checks import shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.arguments import check_activation, check_sizes, no_embeddings, read_target_shapes
from bayeshnet.hnets.deconv_geometry import Deconv, plan_deconvs, read_image_shape, read_kernel_sizes
from bayeshnet.hnets.full import FullHyperNet
from bayeshnet.hnets.hyperfan_chunks import DeconvPart
from bayeshnet.hnets.hyperfan_parts import Places
from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.layers.self_attention import self_attention, self_attention_shapes
from bayeshnet.mnets.param_table import ParamRecord, num_weights
from bayeshnet.typing import Activation, InputRows, OutputRows, Shapes

__all__ = ["HDeconv"]

_LOGGER = logging.getLogger(__name__)
_LAST_FILTERS = 128
_DEFAULT_UNITS = (1, 3)
_ATTENTION_NAMES = ("weight", "bias") * 3 + (None,)


class HDeconv(FullHyperNet):
    """Transposed convolutions with self-attention, from an input, an embedding or both to an image of weights.

    A fully-connected layer makes a small image with many channels; each transposed convolution roughly doubles its size
    (:func:`~bayeshnet.hnets.deconv_geometry.axis_sizes`), as in the generator of DCGAN (Radford et al. 2016,
    https://arxiv.org/abs/1511.06434). The pixels of the last image, channel by channel and row by row, are the weights;
    pixels too many are dropped. Self-attention units (Zhang et al. 2018, https://arxiv.org/abs/1805.08318) relate
    distant pixels. A hidden layer is: (transposed) convolution, batch norm, activation, attention unit if any.

    Parameter table: the embeddings; scale and shift of each batch-norm layer (layers 2, 4, ...); weight and bias of
    each layer (layers 1, 3, ...), followed by the seven tensors of its attention unit (the even layer after it, extra
    key ``info="self-attention"``). See :class:`~bayeshnet.hnets.mlp_hnet.HMLP` for the arguments not explained here.

    Args:
        target_shapes: Shapes of the weights to produce.
        hyper_img_shape: ``(width, height)`` of the last image, or ``(width, height, channels)``; it needs at least as
            many pixels as there are weights.
        uncond_in_size: Size of the unconditional input.
        cond_in_size: Size of the conditional input.
        num_layers: Number of layers, the fully-connected one included; at least 2.
        num_filters: Number of channels after each layer but the last, ``num_layers - 1`` entries. By default 128 in the
            last of them, and twice as many in each one before.
        kernel_size: A number or a tuple ``(k_x, k_y)`` for all transposed convolutions, or a list with one of these for
            each.
        sa_units: Layers after which there is a self-attention unit, 0 being the fully-connected one; not the last one.
            Of the default, layers that do not exist are left out.
        verbose: Log the size of the network at INFO.
        activation_fn: Nonlinearity of the hidden layers; None for the identity.
        use_bias: Give the layers bias vectors. Attention units have them always.
        no_uncond_weights: Do not keep the weights; ``forward`` receives them.
        no_cond_weights: Do not keep the embeddings; ``forward`` receives them.
        num_cond_embs: Number of embeddings.
        use_spectral_norm: Divide each matrix and kernel by its largest singular value.
        use_batch_norm: Normalise the channels of the hidden layers.

    Raises:
        ArgumentError: If a size is out of range or the image is too small for the weights.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> hnet = HDeconv([[10, 5], [10]], (8, 8), uncond_in_size=4, cond_in_size=0, num_layers=3, num_filters=[16, 8])
        >>> [tuple(w.shape) for w in hnet(torch.randn(7, 4), ret_format="stacked")]
        [(7, 10, 5), (7, 10)]
    """

    def __init__(
        self,
        target_shapes: Shapes,
        hyper_img_shape: Sequence[int],
        uncond_in_size: int = 0,
        cond_in_size: int = 8,
        num_layers: int = 5,
        num_filters: Sequence[int] | None = None,
        kernel_size: Any = 5,
        sa_units: Sequence[int] = _DEFAULT_UNITS,
        verbose: bool = True,
        activation_fn: Activation | None = nn.ReLU(),  # noqa: B008 - the API's default; it has no state
        use_bias: bool = True,
        no_uncond_weights: bool = False,
        no_cond_weights: bool = False,
        num_cond_embs: int = 1,
        use_spectral_norm: bool = False,
        use_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        target_shapes = read_target_shapes(target_shapes)
        check_sizes(uncond_in_size=uncond_in_size, cond_in_size=cond_in_size, num_cond_embs=num_cond_embs)
        check_sizes(num_layers=num_layers)
        if uncond_in_size + cond_in_size == 0:
            raise ArgumentError(
                "uncond_in_size: and cond_in_size are both 0; a hypernetwork needs an input of some kind."
            )
        if num_layers < 2:
            raise ArgumentError(
                f"num_layers: is {num_layers}; pass at least 2 (a fully-connected layer and a transposed convolution)."
            )
        width, height, channels = read_image_shape(hyper_img_shape, num_weights(target_shapes))
        filters = _read_filters(num_filters, num_layers)
        kernels = read_kernel_sizes(kernel_size, num_layers - 1)
        start, self._deconvs = plan_deconvs(width, height, [*filters, channels], kernels)
        self._start = (filters[0], *start)
        self._sa_units = _read_units(sa_units, num_layers)
        if cond_in_size == 0:
            num_cond_embs = no_embeddings(num_cond_embs)
        self._hyper_img_shape = (width, height, channels)
        self.activation_fn = check_activation(activation_fn)
        self._has_bias = use_bias
        self._has_linear_out = True
        keep, keep_cond = not no_uncond_weights, not no_cond_weights
        records = [
            ParamRecord((cond_in_size,), "embedding", 0, conditional=True, internal=keep_cond, condition=i)
            for i in range(num_cond_embs)
        ]
        self._bn_refs: list[int] = []
        for i, num in enumerate(filters if use_batch_norm else ()):
            self._bn_refs.append(len(records))
            records += [ParamRecord((num,), name, 2 * i + 2, internal=keep) for name in ("bn_scale", "bn_shift")]
        self._layer_refs: list[tuple[int, int | None]] = []
        self._attention_refs: dict[int, int] = {}
        shapes = [(math.prod(self._start), uncond_in_size + cond_in_size), *(d.weight_shape for d in self._deconvs)]
        for i, shape in enumerate(shapes):
            self._layer_refs.append((len(records), len(records) + 1 if use_bias else None))
            records.append(ParamRecord(shape, "weight", 2 * i + 1, internal=keep))
            if use_bias:
                records.append(ParamRecord((shape[1] if i else shape[0],), "bias", 2 * i + 1, internal=keep))
            if i in self._sa_units:
                self._attention_refs[i] = len(records)
                records += [
                    ParamRecord(s, name, 2 * i + 2, internal=keep, extra={"info": "self-attention"})
                    for s, name in zip(self_attention_shapes(filters[i]), _ATTENTION_NAMES, strict=True)
                ]
        self._describe(
            records,
            target_shapes,
            num_known_conds=num_cond_embs,
            uncond_in_size=uncond_in_size,
            cond_in_size=cond_in_size,
            embedding_refs=range(num_cond_embs),
        )
        self._create_params()
        if self._bn_refs:
            # The affine parameters are in the table, so that they may be external too.
            self._batchnorm_layers = nn.ModuleList([BatchNormLayer(num, affine=False) for num in filters])
        if use_spectral_norm:
            refs = [i for i, record in enumerate(records) if record.name == "weight"]
            deconvs = {ref for ref, _ in self._layer_refs[1:]}
            self._normalise(refs, [ref in deconvs for ref in refs])
        self._reset_parameters()
        if verbose:
            _LOGGER.info(
                "Created HDeconv: %d outputs of %d pixels, %d weights.",
                self.num_outputs,
                width * height * channels,
                self.num_params,
            )

    def _fan_in(self, ref: int) -> float:
        """Number of products that an output of this weight is a sum of; the mean, where it differs between pixels."""
        for layer, deconv in enumerate(self._deconvs, 1):
            if self._layer_refs[layer][0] == ref:
                return deconv.mean_fan_in
        return self._layout.shapes[ref][1]

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """Weights and biases uniform within 1 / sqrt(fan-in), PyTorch's rule; embeddings N(0, 1); the rest neutral."""
        bound = 1.0
        for ref, param in zip(self._layout.internal, self._internal_list(), strict=True):
            name = self._layout.records[ref].name
            if name == "embedding":
                nn.init.normal_(param)
            elif name in ("weight", "bias"):
                bound = 1 / math.sqrt(self._fan_in(ref)) if name == "weight" else bound
                nn.init.uniform_(param, -bound, bound)
            else:  # batch norm the identity; without name the scale of an attention unit, which starts at 0
                nn.init.constant_(param, 1.0 if name == "bn_scale" else 0.0)

    def init_parts(self, places: Sequence[Places]) -> list[DeconvPart]:
        """See :meth:`bayeshnet.hnets.hyperfan_parts.Initialisable.init_parts`."""
        return [DeconvPart(self, tuple(self._deconvs))]

    # ------------------------------------------------------------------ the map

    def generate_rows(self, x: InputRows, weights: Sequence[Tensor], condition: Any = None) -> OutputRows:
        """See :meth:`bayeshnet.hnets.full.FullHyperNet.generate_rows`."""
        steps: list[Deconv | None] = [None, *self._deconvs]
        for i, step in enumerate(steps):
            ref, bias_ref = self._layer_refs[i]
            weight, bias = self._kernel(weights, ref), None if bias_ref is None else weights[bias_ref]
            x = F.linear(x, weight, bias).unflatten(1, self._start) if step is None else step(x, weight, bias)
            if i < len(steps) - 1:
                x = self._hidden(i, x, weights, condition)
        return x.flatten(1)[:, : self.num_outputs]

    def _hidden(self, i: int, x: Tensor, weights: Sequence[Tensor], condition: Any) -> Tensor:
        """What follows the linear part of hidden layer i."""
        batchnorm: Any = self.batchnorm_layers
        if batchnorm is not None:
            scale, shift = weights[self._bn_refs[i]], weights[self._bn_refs[i] + 1]
            x = batchnorm[i](x, weight=scale, bias=shift, stats_id=condition)
        if self.activation_fn is not None:
            x = self.activation_fn(x)
        if i in self._attention_refs:
            refs = range(self._attention_refs[i], self._attention_refs[i] + len(_ATTENTION_NAMES))
            unit = [
                self._kernel(weights, ref) if self._layout.records[ref].name == "weight" else weights[ref]
                for ref in refs
            ]
            x = self_attention(x, unit)
        return x

    # ------------------------------------------------------------------ interface

    @property
    def hyper_img_shape(self) -> tuple[int, int, int]:
        """Width, height and number of channels of the last image."""
        return self._hyper_img_shape

    @property
    def sa_units(self) -> tuple[int, ...]:
        """Layers after which there is a self-attention unit."""
        return self._sa_units


def _read_filters(num_filters: Sequence[int] | None, num_layers: int) -> list[int]:
    if num_filters is None:
        return [_LAST_FILTERS * 2**i for i in reversed(range(num_layers - 1))]
    filters = _read_ints("num_filters", num_filters)
    if len(filters) != num_layers - 1 or any(num < 1 for num in filters):
        raise ArgumentError(
            f"num_filters: is {filters}; pass a list of {num_layers - 1} positive numbers (num_layers - 1: the "
            "channels after each layer but the last)."
        )
    return filters


def _read_units(sa_units: Sequence[int], num_layers: int) -> tuple[int, ...]:
    units = tuple(sorted(set(_read_ints("sa_units", sa_units))))
    if units == _DEFAULT_UNITS:
        return tuple(i for i in units if i < num_layers - 1)
    if any(not 0 <= i < num_layers - 1 for i in units):
        raise ArgumentError(
            f"sa_units: is {list(sa_units)}; pass numbers in 0..{num_layers - 2}, the layers before the last one."
        )
    return units


def _read_ints(name: str, values: Any) -> list[int]:
    listed = list(values) if isinstance(values, (tuple, list)) else None
    if listed is None or not all(isinstance(v, int) and not isinstance(v, bool) for v in listed):
        raise ArgumentTypeError(f"{name}: is {shown(values)}; pass a list of ints.")
    return listed

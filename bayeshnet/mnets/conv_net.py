"""What the convolutional main networks share: images as inputs, and one description of their layers."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.base import MainNet
from bayeshnet.mnets.layer_reader import ImageShape, LayerReader, ModOptions, evaluate, record
from bayeshnet.typing import WeightsArg

__all__ = ["ConvNet", "check_sizes"]

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


class ConvNet(MainNet):
    """Base of the convolutional networks; a subclass implements :meth:`_layers` and calls :meth:`_set_up`.

    Example:
        >>> from bayeshnet.mnets import ResNet
        >>> issubclass(ResNet, ConvNet)
        True
    """

    _mods: ModOptions
    _use_batch_norm: bool
    _dropout_rate: float
    _in_shape: ImageShape
    _channels_first: bool

    # ------------------------------------------------------------------ construction

    def _set_up(
        self,
        in_shape: Sequence[int],
        *,
        mods: ModOptions,
        channels_first: bool = False,
        dropout_rate: float = -1,
        no_weights: bool,
        init_weights: Sequence[Tensor] | None = None,
        use_batch_norm: bool,
        bn_track_stats: bool,
        distill_bn_stats: bool,
        verbose: bool,
    ) -> None:
        if len(in_shape) != 3 or any(size < 1 for size in in_shape):
            raise ArgumentError(f"in_shape: is {tuple(in_shape)}; pass (height, width, channels), each at least 1.")
        if dropout_rate != -1 and not 0 <= dropout_rate <= 1:
            raise ArgumentError(f"dropout_rate: is {dropout_rate}; pass a number in [0, 1], or -1 for none.")
        if use_batch_norm and distill_bn_stats and not bn_track_stats:
            raise ArgumentError("distill_bn_stats: needs running statistics; pass bn_track_stats=True with it.")
        height, width, channels = in_shape
        self._in_shape = (channels, height, width)
        self._channels_first = channels_first
        self._mods = mods
        self._use_batch_norm = use_batch_norm
        self._dropout_rate = max(0.0, dropout_rate)
        self._has_fc_out = self._mask_fc_out = self._has_linear_out = True
        records, self._order = record(self._layers, self._in_shape, mods, use_batch_norm=use_batch_norm)
        self._build(
            records,
            no_weights=no_weights,
            mod_no_weights=mods.context_mod_no_weights,
            mod_options={
                "apply_gain_offset": mods.context_mod_gain_offset,
                "apply_gain_softplus": mods.context_mod_gain_softplus,
            },
            track_stats=bn_track_stats,
            distill_stats=distill_bn_stats,
        )
        if init_weights is not None:
            self._init_from(init_weights)
        if verbose:
            name, total, own = type(self).__name__, self.num_params, self.num_internal_params
            _LOGGER.info("%s with %d weights, %d of them its own.", name, total, own)

    @abstractmethod
    def _layers(self, reader: LayerReader[T], x: T) -> T:
        """Apply the layers from input to output."""

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        x: Tensor,
        weights: WeightsArg | None = None,
        distilled_params: Sequence[Tensor] | None = None,
        condition: Any = None,
    ) -> Tensor:
        """Compute the logits.

        Args:
            x: Images: flat ``[B, H * W * C]`` or ``[B, H, W, C]``, the channels last (where the network was built with
                ``chw_input_format``, first). One image may lack the batch dimension: the batch is then 1.
            weights: External weights: a list with one tensor per entry of :attr:`param_shapes` or of
                :attr:`hyper_shapes_learned`; a list of all gains and shifts; or a dict with ``"internal_weights"`` (all
                but gains and shifts), ``"mod_weights"`` (gains and shifts), or both. What is not given is the
                network's own. Gains and shifts may have a first dimension B: separate ones per sample.
            distilled_params: Statistics for the batch norm, as given by ``distillation_targets``.
            condition: Number of the set of batch-norm statistics, the newest by default; or a dict with
                ``"bn_stats_id"``, ``"cmod_ckpt_id"`` (a checkpoint of gains and shifts), or both.

        Returns:
            Logits ``[B, num_classes]``.

        Raises:
            ArgumentError: If shapes do not fit, or weights that the network does not keep are missing.
            ArgumentTypeError: If ``x`` is no tensor.
        """
        images = self._images(x)
        call = self._parse_call(weights, distilled_params, condition)
        return evaluate(
            self._layers,
            images,
            [call.weights[i] for i in self._order],
            self._mods,
            modulate=partial(self._modulate, call),
            normalise=partial(self._normalise, call) if self._use_batch_norm else None,
            dropout_rate=self._dropout_rate if self.training else 0.0,
        )

    def _images(self, x: Tensor) -> Tensor:
        """The inputs as ``[B, C, H, W]``."""
        channels, height, width = self._in_shape
        layout = (channels, height, width) if self._channels_first else (height, width, channels)
        flat = channels * height * width
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"x: is {kind_of(x)}; pass a tensor [B, {flat}].")
        if tuple(x.shape[1:]) not in ((flat,), layout) and tuple(x.shape) not in ((flat,), layout):
            hint = ""
            if not self._channels_first and tuple(x.shape[1:]) == self._in_shape:
                hint = " Channels come last: pass x.permute(0, 2, 3, 1)."
            raise ArgumentError(
                f"x: has shape {list(x.shape)}; this network takes [B, {flat}] or [B, {', '.join(map(str, layout))}]."
                + hint
            )
        images = x.reshape(-1, *layout)
        return images if self._channels_first else images.permute(0, 3, 1, 2)


def check_sizes(num_classes: int, n: int, k: int, num_feature_maps: Sequence[int]) -> tuple[int, int, int, int]:
    """The four widths of a network: that of the first layer, and those of the groups, ``k`` times as wide.

    Raises:
        ArgumentError: If a size is out of range.
        ArgumentTypeError: If it is no integer.

    Example:
        >>> check_sizes(10, 4, 10, (16, 16, 32, 64))
        (16, 160, 320, 640)
    """
    for name, value in (("num_classes", num_classes), ("n", n), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(f"{name}: is {kind_of(value)}; pass an int.")
        if value < 1:
            raise ArgumentError(f"{name}: is {value}; pass a number of at least 1.")
    if len(num_feature_maps) != 4 or any(width < 1 for width in num_feature_maps):
        raise ArgumentError(
            f"num_feature_maps: is {tuple(num_feature_maps)}; pass four sizes of at least 1: that of the first layer "
            "and one for each group of blocks, such as (16, 16, 32, 64)."
        )
    first, *groups = num_feature_maps
    return first, k * groups[0], k * groups[1], k * groups[2]

"""A wide residual network whose weights are its own, come from outside, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from bayeshnet.mnets.conv_net import ConvNet, check_sizes
from bayeshnet.mnets.layer_reader import LayerReader, ModOptions

__all__ = ["WRN"]

T = TypeVar("T")


class WRN(ConvNet):
    """A wide residual network (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146), WRN-28-10 by default.

    A first 3x3 convolution, three groups of n blocks of two 3x3 convolutions each, batch norm, ReLU, the mean over the
    pixels, and a linear layer: depth ``6 n + 4`` as the paper counts. The first block of the second and of the third
    group halves height and width. Where a block changes the number of pixels or of channels, its skip connection is a
    1x1 convolution of the block's input, without bias; elsewhere it is the identity.

    Batch norm and ReLU come before the convolutions of a block: context modulation, batch norm, ReLU, convolution (or
    context modulation after the ReLU). Dropout follows a block's first convolution. The linear layer is modulated too.

    Parameter table: gain and shift of each context-modulation layer, scale and shift of each batch-norm layer, weights
    of the 1x1 convolutions, weight and bias of each 3x3 convolution and of the linear layer. Layers are numbered in the
    order in which they are applied, from 0. Weights start with PyTorch's default for convolutions, batch norm and
    modulation as the identity; ``custom_init`` draws them anew.

    Args:
        in_shape: ``(height, width, channels)`` of the images.
        num_classes: Number of outputs.
        n: Number of blocks in a group.
        k: Factor that widens the three groups.
        num_feature_maps: Channels of the first convolution and, before widening, of the three groups.
        use_bias: Give the 3x3 convolutions bias vectors; ``has_bias`` tells this.
        use_fc_bias: Give the linear layer a bias vector; as ``use_bias`` by default.
        no_weights: Do not keep the weights of convolutions, linear and batch-norm layers; ``forward`` receives them.
        use_batch_norm: Normalise after each 3x3 convolution and block.
        bn_track_stats: Keep running statistics of the batch norm; else batch statistics are used in evaluation too.
        distill_bn_stats: Offer the running statistics by ``distillation_targets``, and accept them as
            ``distilled_params``. Without batch norm it has no effect.
        dropout_rate: Dropout within the blocks; -1 for none.
        chw_input_format: Inputs are in the order (channels, height, width), flat or not; ``in_shape`` stays as it is.
        verbose: Log the size of the network at INFO.
        **kwargs: The options of context modulation of :class:`~bayeshnet.mnets.resnet.ResNet`.

    Raises:
        ArgumentError: If a size or rate is out of range, or options exclude each other.
        ArgumentTypeError: If a size is no integer or a keyword is unknown.

    Example:
        >>> import torch
        >>> WRN(use_bias=False, no_weights=True).num_params
        36479184
        >>> net = WRN((8, 8, 1), 10, n=1, k=2, num_feature_maps=(4, 4, 8, 8))
        >>> net(torch.rand(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (32, 32, 3),
        num_classes: int = 10,
        n: int = 4,
        k: int = 10,
        num_feature_maps: Sequence[int] = (16, 16, 32, 64),
        use_bias: bool = True,
        use_fc_bias: bool | None = None,
        no_weights: bool = False,
        use_batch_norm: bool = True,
        bn_track_stats: bool = True,
        distill_bn_stats: bool = False,
        dropout_rate: float = -1,
        chw_input_format: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._widths = check_sizes(num_classes, n, k, num_feature_maps)
        self._num_classes = num_classes
        self._num_blocks = n
        self._has_bias = use_bias
        self._fc_bias = use_bias if use_fc_bias is None else use_fc_bias
        self._set_up(
            in_shape,
            mods=ModOptions.from_kwargs(kwargs),
            channels_first=chw_input_format,
            dropout_rate=dropout_rate,
            no_weights=no_weights,
            use_batch_norm=use_batch_norm,
            bn_track_stats=bn_track_stats,
            distill_bn_stats=distill_bn_stats,
            verbose=verbose,
        )

    def _layers(self, reader: LayerReader[T], x: T) -> T:
        def activate(x: T) -> T:
            x = reader.norm(reader.modulate(x, "before"))
            return reader.modulate(reader.relu(x), "after")

        first, *groups = self._widths
        x, before = reader.conv(reader.modulate(x, "input"), first, bias=self._has_bias), first
        for group, width in enumerate(groups):
            for block in range(self._num_blocks):
                stride = 2 if group > 0 and block == 0 else 1
                y = activate(x)
                if stride > 1 or width != before:
                    x = reader.conv(x, width, stride=stride, kernel=1, skip=True)
                y = reader.dropout(reader.conv(y, width, stride=stride, bias=self._has_bias))
                y = reader.conv(activate(y), width, bias=self._has_bias)
                x, before = reader.add(x, y), width
        x = reader.linear(reader.average(activate(x)), self._num_classes, bias=self._fc_bias)
        return reader.modulate(x, "output")

"""A residual network for small images whose weights are its own, come from outside, or both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.mnets.conv_net import ConvNet, check_sizes
from bayeshnet.mnets.layer_reader import LayerReader, ModOptions

__all__ = ["ResNet"]

T = TypeVar("T")


class ResNet(ConvNet):
    """A residual network for small images (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2).

    A first 3x3 convolution, three groups of n blocks of two 3x3 convolutions each, the mean over the pixels, and a
    linear layer: ``6 n + 2`` layers with weights, ResNet-32 by default. The first block of the second and of the third
    group halves height and width. A skip connection takes every second pixel there, and adds channels of zeros on both
    sides where the width grows (option A of the paper): it has no parameters.

    A hidden layer is: convolution, context modulation, batch norm, the skip connection if a block ends here, ReLU (or
    context modulation after the ReLU). The linear layer is modulated too.

    Parameter table: gain and shift of each context-modulation layer, scale and shift of each batch-norm layer, weight
    and bias of each convolution and of the linear layer. Layers are numbered in the order in which they are applied,
    from 0. Weights start with PyTorch's default for convolutions, batch norm and modulation as the identity;
    ``custom_init`` draws them anew.

    Args:
        in_shape: ``(height, width, channels)`` of the images.
        num_classes: Number of outputs.
        use_bias: Give convolutions and the linear layer bias vectors.
        num_feature_maps: Channels of the first convolution and of the three groups; they must not decrease.
        verbose: Log the size of the network at INFO.
        n: Number of blocks in a group.
        k: Factor that widens the three groups.
        no_weights: Do not keep the weights of convolutions, linear and batch-norm layers; ``forward`` receives them.
        init_weights: Values of the internal parameters, in the order of ``internal_params``.
        use_batch_norm: Normalise after each convolution.
        bn_track_stats: Keep running statistics of the batch norm; else batch statistics are used in evaluation too.
        distill_bn_stats: Offer the running statistics by ``distillation_targets``, and accept them as
            ``distilled_params``. Without batch norm it has no effect.
        context_mod_apply_pixel_wise: Gains and shifts for each pixel, ``[C, H, W]``, rather than each channel,
            ``[C, 1, 1]``.
        **kwargs: The options of context modulation of :class:`~bayeshnet.mnets.mlp.MLP`: ``use_context_mod``,
            ``context_mod_inputs``, ``no_last_layer_context_mod``, ``context_mod_no_weights``,
            ``context_mod_post_activation``, ``context_mod_gain_offset``, ``context_mod_gain_softplus``.

    Raises:
        ArgumentError: If a size is out of range, widths decrease, options exclude each other or ``init_weights`` do not
            fit.
        ArgumentTypeError: If a size is no integer or a keyword is unknown.

    Example:
        >>> import torch
        >>> ResNet().num_params
        465290
        >>> net = ResNet((8, 8, 1), 10, num_feature_maps=(4, 4, 8, 8), n=1, no_weights=True)
        >>> weights = [torch.randn(shape) for shape in net.hyper_shapes_learned]
        >>> net(torch.rand(5, 64), weights=weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (32, 32, 3),
        num_classes: int = 10,
        use_bias: bool = True,
        num_feature_maps: Sequence[int] = (16, 16, 32, 64),
        verbose: bool = True,
        n: int = 5,
        k: int = 1,
        no_weights: bool = False,
        init_weights: Sequence[Tensor] | None = None,
        use_batch_norm: bool = True,
        bn_track_stats: bool = True,
        distill_bn_stats: bool = False,
        context_mod_apply_pixel_wise: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._widths = check_sizes(num_classes, n, k, num_feature_maps)
        if any(after < before for before, after in pairwise(self._widths)):
            raise ArgumentError(
                f"num_feature_maps: leads to the widths {self._widths}, which decrease; skip connections can only add "
                "channels of zeros, so pass sizes that do not decrease (mind that k widens all but the first), or use "
                "WRN."
            )
        self._num_classes = num_classes
        self._num_blocks = n
        self._has_bias = use_bias
        mods = {"context_mod_apply_pixel_wise": context_mod_apply_pixel_wise, **kwargs}
        self._set_up(
            in_shape,
            mods=ModOptions.from_kwargs(mods),
            no_weights=no_weights,
            init_weights=init_weights,
            use_batch_norm=use_batch_norm,
            bn_track_stats=bn_track_stats,
            distill_bn_stats=distill_bn_stats,
            verbose=verbose,
        )

    def _layers(self, reader: LayerReader[T], x: T) -> T:
        def hidden(x: T, width: int, stride: int, skip: T | None = None) -> T:
            x = reader.conv(x, width, stride=stride, bias=self._has_bias)
            x = reader.norm(reader.modulate(x, "before"))
            if skip is not None:
                x = reader.add(x, skip)
            return reader.modulate(reader.relu(x), "after")

        first, *groups = self._widths
        x = hidden(reader.modulate(x, "input"), first, 1)
        for group, width in enumerate(groups):
            for block in range(self._num_blocks):
                stride = 2 if group > 0 and block == 0 else 1
                skip = reader.shortcut(x, width, stride=stride)
                x = hidden(hidden(x, width, stride), width, 1, skip)
        x = reader.linear(reader.average(x), self._num_classes, bias=self._has_bias)
        return reader.modulate(x, "output")

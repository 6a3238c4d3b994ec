"""A deconvolutional hypernetwork that makes the weights in equal chunks, each of them an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from bayeshnet.hnets.chunked import ChunkedHyperNet
from bayeshnet.hnets.deconv_geometry import read_image_shape
from bayeshnet.hnets.deconv_hnet import HDeconv
from bayeshnet.typing import Activation, Shapes

__all__ = ["ChunkedHDeconv"]


class ChunkedHDeconv(ChunkedHyperNet):
    """An :class:`~bayeshnet.hnets.deconv_hnet.HDeconv` that is called once for each chunk of the flat target vector.

    The chunk size is the number of pixels of the image. See :class:`~bayeshnet.hnets.chunked.ChunkedHyperNet` for the
    formula and the table, :class:`~bayeshnet.hnets.chunked_mlp_hnet.ChunkedHMLP` and ``HDeconv`` for the arguments that
    are not explained here.

    Args:
        target_shapes: Shapes of the weights to produce.
        hyper_img_shape: ``(width, height)`` of the image of a chunk, or ``(width, height, channels)``.
        chunk_emb_size: Size of a chunk embedding.
        cond_chunk_embs: Have chunk embeddings for each condition. Both input sizes may then be 0.
        uncond_in_size: Size of the unconditional input.
        cond_in_size: Size of the conditional input.
        num_layers: Number of layers, the fully-connected one included.
        num_filters: Number of channels after each layer but the last.
        kernel_size: Kernels of the transposed convolutions.
        sa_units: Layers after which there is a self-attention unit.
        verbose: Log the size of the network at INFO.
        activation_fn: Nonlinearity of the hidden layers; None for the identity.
        use_bias: Give the layers bias vectors.
        no_uncond_weights: Do not keep the weights; ``forward`` receives them.
        no_cond_weights: Do not keep embeddings of conditions; ``forward`` receives them.
        num_cond_embs: Number of conditions.
        use_spectral_norm: Divide each matrix and kernel by its largest singular value.
        use_batch_norm: Normalise the channels of the hidden layers, over samples and chunks.

    Raises:
        ArgumentError: If a size is out of range, or there is no input of any kind.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> hnet = ChunkedHDeconv([[10, 5], [10]], (5, 5), num_layers=2, num_filters=[4], num_cond_embs=2)
        >>> hnet.num_chunks, hnet.chunk_size
        (3, 25)
        >>> [tuple(w.shape) for w in hnet(cond_id=1)]
        [(10, 5), (10,)]
    """

    def __init__(
        self,
        target_shapes: Shapes,
        hyper_img_shape: Sequence[int],
        chunk_emb_size: int = 8,
        cond_chunk_embs: bool = False,
        uncond_in_size: int = 0,
        cond_in_size: int = 8,
        num_layers: int = 5,
        num_filters: Sequence[int] | None = None,
        kernel_size: Any = 5,
        sa_units: Sequence[int] = (1, 3),
        verbose: bool = True,
        activation_fn: Activation | None = nn.ReLU(),  # noqa: B008 - the API's default; it has no state
        use_bias: bool = True,
        no_uncond_weights: bool = False,
        no_cond_weights: bool = False,
        num_cond_embs: int = 1,
        use_spectral_norm: bool = False,
        use_batch_norm: bool = False,
    ) -> None:
        def make_hnet(uncond_in_size: int, cond_in_size: int, num_cond_embs: int) -> HDeconv:
            return HDeconv(
                [[math.prod(read_image_shape(hyper_img_shape))]],
                hyper_img_shape,
                uncond_in_size,
                cond_in_size,
                num_layers,
                num_filters,
                kernel_size,
                sa_units,
                verbose=False,
                activation_fn=activation_fn,
                use_bias=use_bias,
                no_uncond_weights=no_uncond_weights,
                no_cond_weights=no_cond_weights,
                num_cond_embs=num_cond_embs,
                use_spectral_norm=use_spectral_norm,
                use_batch_norm=use_batch_norm,
            )

        super().__init__(
            make_hnet,
            target_shapes,
            chunk_emb_size=chunk_emb_size,
            cond_chunk_embs=cond_chunk_embs,
            uncond_in_size=uncond_in_size,
            cond_in_size=cond_in_size,
            no_uncond_weights=no_uncond_weights,
            no_cond_weights=no_cond_weights,
            num_cond_embs=num_cond_embs,
            verbose=verbose,
        )

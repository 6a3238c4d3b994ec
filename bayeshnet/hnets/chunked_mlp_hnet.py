"""A fully-connected hypernetwork that makes the weights in equal chunks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bayeshnet.errors import ArgumentError
from bayeshnet.hnets.arguments import check_sizes
from bayeshnet.hnets.chunked import ChunkedHyperNet
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.typing import Activation, Shapes

__all__ = ["ChunkedHMLP"]


class ChunkedHMLP(ChunkedHyperNet):
    """An :class:`~bayeshnet.hnets.mlp_hnet.HMLP` that is called once for each chunk of the flat target vector.

    It knows nothing of layers: chunks end anywhere in the target tensors. Its output layer has ``chunk_size`` rows and
    not ``num_outputs``, so that it may have far fewer weights than it produces. See
    :class:`~bayeshnet.hnets.chunked.ChunkedHyperNet` for the formula and the table, ``HMLP`` for the arguments that are
    not explained here.

    Args:
        target_shapes: Shapes of the weights to produce.
        chunk_size: Number of weights in a chunk.
        chunk_emb_size: Size of a chunk embedding. They start at N(0, 1).
        cond_chunk_embs: Have chunk embeddings for each condition. Both input sizes may then be 0. With
            ``num_cond_embs=0`` they are passed as ``weights={"chunk_embs": ...}``, ``[B, num_chunks, chunk_emb_size]``.
        uncond_in_size: Size of the unconditional input.
        cond_in_size: Size of the conditional input.
        layers: Width of each hidden layer.
        verbose: Log the size of the network at INFO.
        activation_fn: Nonlinearity of the hidden layers; None for the identity.
        use_bias: Give the layers bias vectors.
        no_uncond_weights: Do not keep the weights (nor unconditional chunk embeddings); ``forward`` receives them.
        no_cond_weights: Do not keep embeddings of conditions; ``forward`` receives them.
        num_cond_embs: Number of conditions.
        dropout_rate: Dropout of the hidden layers; -1 for none.
        use_spectral_norm: Divide each weight matrix by its largest singular value.
        use_batch_norm: Normalise the hidden layers, over samples and chunks.

    Raises:
        ArgumentError: If a size or rate is out of range, or there is no input of any kind.

    Example:
        >>> hnet = ChunkedHMLP([[10, 5], [10]], 25, cond_in_size=3, num_cond_embs=2, layers=(16,))
        >>> hnet.num_chunks, hnet.get_chunk_emb().shape
        (3, torch.Size([3, 8]))
        >>> [tuple(w.shape) for w in hnet(cond_id=[0, 1, 1], ret_format="stacked")]
        [(3, 10, 5), (3, 10)]
    """

    def __init__(
        self,
        target_shapes: Shapes,
        chunk_size: int,
        chunk_emb_size: int = 8,
        cond_chunk_embs: bool = False,
        uncond_in_size: int = 0,
        cond_in_size: int = 8,
        layers: Sequence[int] = (100, 100),
        verbose: bool = True,
        activation_fn: Activation | None = nn.ReLU(),  # noqa: B008 - the API's default; it has no state
        use_bias: bool = True,
        no_uncond_weights: bool = False,
        no_cond_weights: bool = False,
        num_cond_embs: int = 1,
        dropout_rate: float = -1,
        use_spectral_norm: bool = False,
        use_batch_norm: bool = False,
    ) -> None:
        check_sizes(chunk_size=chunk_size)
        if chunk_size == 0:
            raise ArgumentError("chunk_size: is 0; give the number of weights in a chunk, at least 1.")

        def make_hnet(uncond_in_size: int, cond_in_size: int, num_cond_embs: int) -> HMLP:
            return HMLP(
                [[chunk_size]],
                uncond_in_size,
                cond_in_size,
                layers,
                verbose=False,
                activation_fn=activation_fn,
                use_bias=use_bias,
                no_uncond_weights=no_uncond_weights,
                no_cond_weights=no_cond_weights,
                num_cond_embs=num_cond_embs,
                dropout_rate=dropout_rate,
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

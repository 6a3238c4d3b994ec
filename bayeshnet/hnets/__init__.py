"""Networks that produce the weights of other networks."""

from __future__ import annotations

from bayeshnet.hnets.base import HyperNet
from bayeshnet.hnets.chunked import ChunkedHyperNet
from bayeshnet.hnets.chunked_deconv_hnet import ChunkedHDeconv
from bayeshnet.hnets.chunked_mlp_hnet import ChunkedHMLP
from bayeshnet.hnets.deconv_hnet import HDeconv
from bayeshnet.hnets.hnet_container import HContainer
from bayeshnet.hnets.hnet_helpers import (
    get_conditional_parameters,
    init_chunk_embeddings,
    init_conditional_embeddings,
)
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.hnets.linear_head import LinearHeadHyperNet
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.hnets.structured_hmlp_examples import resnet_chunking, wrn_chunking
from bayeshnet.hnets.structured_mlp_hnet import StructuredHMLP

__all__ = [
    "HMLP",
    "ChunkedHDeconv",
    "ChunkedHMLP",
    "ChunkedHyperNet",
    "HContainer",
    "HDeconv",
    "HPerturbWrapper",
    "HyperNet",
    "HyperNetInterface",
    "LinearHeadHyperNet",
    "StructuredHMLP",
    "get_conditional_parameters",
    "init_chunk_embeddings",
    "init_conditional_embeddings",
    "resnet_chunking",
    "wrn_chunking",
]

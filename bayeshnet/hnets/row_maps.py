"""Whether what a hypernetwork makes of a row of input is a function of that row."""

from __future__ import annotations

from torch import nn

from bayeshnet.errors import DensityError
from bayeshnet.layers.batch_norm import BatchNormLayer

__all__ = ["require_row_map"]


def require_row_map(hnet: nn.Module, consequence: str, *, otherwise: str = "") -> None:
    """Raise if a hypernetwork has batch norm or dropout.

    Args:
        hnet: The hypernetwork.
        consequence: What follows from either, for the message.
        otherwise: What else there is to do, for the message.

    Raises:
        DensityError: If it has.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> require_row_map(HMLP([[3]], dropout_rate=0.5), "so that its outputs are random")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.DensityError: hnet: has dropout (module 'dropout'), so that its outputs are random; build it \
with use_batch_norm=False and dropout_rate=-1.
    """
    for name, module in hnet.named_modules():
        if isinstance(module, BatchNormLayer | nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage] - torch's common base has no public name
            kind = "batch norm"
        elif isinstance(module, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage] - the same
            kind = "dropout"
        else:
            continue
        raise DensityError(
            f"hnet: has {kind} (module {name!r}), {consequence}; build it with use_batch_norm=False and "
            f"dropout_rate=-1{otherwise}."
        )

"""Where draws have their dimensions, as the plates around a program say."""

from __future__ import annotations

from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK  # pyright: ignore[reportPrivateUsage] - has no public name
from torch import Tensor

__all__ = ["draws_have_batches", "in_plates"]


def draws_have_batches() -> bool:
    """Whether draws of a larger program may have dimensions to the left of rows: in further plates, or enumerated.

    Example:
        >>> import pyro
        >>> with pyro.plate("particles", 5, dim=-2):
        ...     draws_have_batches()
        True
        >>> draws_have_batches()
        False
    """
    plates = (handler for handler in _PYRO_STACK if isinstance(handler, IndepMessenger))
    return any(_dim(plate) < -1 for plate in plates) or any(isinstance(h, EnumMessenger) for h in _PYRO_STACK)


def in_plates(value: Tensor, event_dim: int) -> Tensor:
    """A draw whose first dimension is that of the outermost plate around it, with size 1 for plates in between.

    A parallel ``Predictive`` gives draws ``[S, *event]`` of matrices where its plate is left of others, so that they
    would be taken for those of an inner plate. Anything else is returned as it is.

    Args:
        value: The draw ``[*batch, *event]``.
        event_dim: Number of dimensions of ``event``.

    Example:
        >>> import pyro, torch
        >>> with pyro.plate("draws", 5, dim=-3):
        ...     in_plates(torch.zeros(5, 4, 2), 2).shape
        torch.Size([5, 1, 1, 4, 2])
    """
    batch = value.shape[: value.dim() - event_dim]
    if not batch or not _PYRO_STACK:
        return value
    plates = [plate for plate in _PYRO_STACK if isinstance(plate, IndepMessenger) and plate.dim is not None]
    outermost = min(plates, key=_dim, default=None)
    if outermost is None or len(batch) >= -_dim(outermost) or batch[0] != _size(outermost):
        return value
    return value.reshape(batch[0], *(1,) * (-_dim(outermost) - len(batch)), *value.shape[1:])


def _dim(plate: IndepMessenger) -> int:
    return plate.dim or 0


def _size(plate: IndepMessenger) -> int:
    return getattr(plate, "subsample_size", plate.size)

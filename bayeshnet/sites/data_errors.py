"""Errors of a model that is run on data, where the data are to blame."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from bayeshnet.errors import BayeshnetError
from bayeshnet.sites.arguments import call_error, nan_data_error

__all__ = ["errors_of_data"]


@contextlib.contextmanager
def errors_of_data(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> Generator[None]:
    """Say what is wrong with the data where the model cannot be run on them within a ``with`` block.

    Args:
        model: The model.
        args: The positional arguments it is called with.
        kwargs: The keyword arguments.
        argument: Name of the argument that they come from.

    Raises:
        ArgumentTypeError: If the model does not take these arguments.
        ArgumentError: If Pyro's validation fails, and they hold NaN or infinite values.

    Example:
        >>> with errors_of_data(lambda x: x, (1,), {}, "data"):
        ...     pass
    """
    try:
        yield
    except BayeshnetError:
        raise
    except TypeError as error:
        if (wrong_call := call_error(model, args, kwargs, argument)) is None:
            raise
        raise wrong_call from error
    except ValueError as error:  # Pyro's validation of a distribution's parameters, or of what is observed
        if (better := nan_data_error(args, kwargs, error, argument)) is None:
            raise
        raise better from error

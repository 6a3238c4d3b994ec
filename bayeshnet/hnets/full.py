"""Full hypernetworks: one pass from an input to all weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeshnet.hnets.arguments import HyperInputs, expand_rows
from bayeshnet.hnets.base import HyperNet
from bayeshnet.layers.plain_modules import is_plain
from bayeshnet.typing import InputRows, OutputRows

__all__ = ["FullHyperNet"]


class FullHyperNet(HyperNet):
    """A hypernetwork that is a function of one row, ``[uncond_input, cond_input]``.

    It can be the inner network of a chunked one, which appends a chunk embedding to the unconditional input.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[10, 5]], uncond_in_size=2, cond_in_size=0)
        >>> isinstance(hnet, FullHyperNet), hnet.generate_rows(torch.randn(3, 2), list(hnet.internal_params)).shape
        (True, torch.Size([3, 50]))
    """

    @abstractmethod
    def generate_rows(self, x: InputRows, weights: Sequence[Tensor], condition: Any = None) -> OutputRows:
        """Compute the outputs of rows of input, one by one; no arguments are checked.

        Args:
            x: Rows ``[R, uncond_in_size + cond_in_size]``, the unconditional input first.
            weights: One tensor per record of the table.
            condition: Selects the batch-norm statistics, where there are any.

        Returns:
            Outputs ``[R, num_outputs]``.
        """

    def is_plain_map(self) -> bool:
        """Whether a call is :meth:`generate_rows` and nothing else: no hooks, no ``forward`` but that of the package.

        Read at each call, since hooks and a ``forward`` can be put there at any time.
        """
        return (
            is_plain(self, HyperNet.forward)
            and type(self)._generate is FullHyperNet._generate
            and "_generate" not in self.__dict__
        )

    def call_rows(self, x: InputRows, weights: Sequence[Tensor], condition: Any = None) -> OutputRows:
        """What :meth:`generate_rows` computes, by a call of the network where that is more than this method."""
        if self.is_plain_map():
            return self.generate_rows(x, weights, condition)
        uncond, cond = x.split([self.uncond_in_size, self.cond_in_size], dim=1)
        return self(
            uncond_input=uncond if self.uncond_in_size else None,
            cond_input=cond if self.cond_in_size else None,
            weights=list(weights),
            condition=condition,
            ret_format="flattened",
        )

    def _generate(self, inputs: HyperInputs, weights: list[Tensor]) -> Tensor:
        rows = [inputs.uncond_input, self._conditional_rows(inputs, weights)]
        parts = [expand_rows(part, inputs.batch_size) for part in rows if part is not None]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.generate_rows(x, weights, inputs.condition)

    @property
    def uncond_in_size(self) -> int:
        """Size of the unconditional input."""
        return self._uncond_in_size or 0

    @property
    def cond_in_size(self) -> int:
        """Size of the conditional input."""
        return self._cond_in_size or 0

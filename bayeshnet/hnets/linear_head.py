"""The contract of hypernetworks whose output layer is linear: features and head apart.

With h(x) = W f(x) + b a density needs ``W`` and the Jacobian of the q features only, never that of the D outputs.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from bayeshnet.typing import CondId, HeadWeight, Jacobians, NoiseBatch, Weights, WeightsArg

__all__ = ["LinearHeadHyperNet"]


@runtime_checkable
class LinearHeadHyperNet(Protocol):
    """A hypernetwork with ``h(x) = features(x) @ weight.T + bias``, where ``weight, bias = head()``.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, layers=(4,))
        >>> isinstance(hnet, LinearHeadHyperNet) and hnet.has_linear_head
        True
    """

    @property
    def has_linear_head(self) -> bool:
        """Whether :meth:`features` and :meth:`head` can be called, as configured."""
        ...

    def features(
        self,
        uncond_input: Tensor | None = None,
        cond_input: Tensor | None = None,
        cond_id: CondId | None = None,
        weights: WeightsArg | None = None,
    ) -> Tensor:
        """The input ``[..., q]`` of the output layer, for inputs with any number of leading dimensions."""
        ...

    def head(self, weights: WeightsArg | None = None, rows: int | None = None) -> tuple[HeadWeight, Weights | None]:
        """Weight ``[D, q]`` and bias ``[D]`` of the output layer, or their first ``rows`` rows."""
        ...

    def feature_jacobian(
        self,
        uncond_input: NoiseBatch,
        cond_input: Tensor | None = None,
        cond_id: CondId | None = None,
        weights: WeightsArg | None = None,
    ) -> Jacobians:
        """Derivatives ``J[s, i, j] = d features_j(z_s) / d z_i`` for ``uncond_input [S, n]``: ``[S, n, q]``."""
        ...

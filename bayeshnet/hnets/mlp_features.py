"""The fast form of a fully-connected hypernetwork: features, their Jacobian, and the linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.hnets.activations import elementwise_derivative, is_bounded
from bayeshnet.hnets.arguments import HyperInputs, check_input
from bayeshnet.hnets.full import FullHyperNet
from bayeshnet.hnets.jacobian import row_jacobian
from bayeshnet.layers.plain_modules import has_hooks
from bayeshnet.typing import Activation, CondId, HeadWeight, Jacobians, NoiseBatch, Weights, WeightsArg

__all__ = ["MLPFeatures"]


class MLPFeatures(FullHyperNet):
    """The part of :class:`~bayeshnet.hnets.mlp_hnet.HMLP` that implements ``LinearHeadHyperNet``.

    ``h(x) = features(x) @ weight.T + bias`` with ``weight, bias = head()``: what a density of the output needs is the
    Jacobian of the q features, not that of the D weights.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[3, 2]], uncond_in_size=2, cond_in_size=0, layers=(4,))
        >>> (weight, bias), z = hnet.head(), torch.randn(5, 2)
        >>> torch.allclose(hnet(z, ret_format="flattened"), hnet.features(z) @ weight.T + bias, atol=1e-6)
        True
    """

    activation_fn: Activation | None
    dropout: nn.Dropout | None
    _fc_refs: list[tuple[int, int | None]]
    _bn_refs: list[int]
    _linear_skip: bool

    def _hidden(self, x: Tensor, weights: Sequence[Tensor], condition: Any = None, *, update: bool = True) -> Tensor:
        """The input ``[..., q]`` of the output layer."""
        batchnorm, dropout, activation = self.batchnorm_layers, self.dropout, self.activation_fn
        for i, (ref, bias_ref) in enumerate(self._fc_refs[:-1]):
            x = F.linear(x, self._kernel(weights, ref, update=update), None if bias_ref is None else weights[bias_ref])
            if batchnorm is not None:
                scale, shift = weights[self._bn_refs[i]], weights[self._bn_refs[i] + 1]
                x = batchnorm[i](x, weight=scale, bias=shift, stats_id=condition)
            if dropout is not None:
                x = dropout(x)
            if activation is not None:
                x = activation(x)
        return x

    # ------------------------------------------------------------------ features and head

    @property
    def has_linear_head(self) -> bool:
        """Whether :meth:`features` and :meth:`head` apply: not with batch norm, dropout, hooks or another forward."""
        return not self._bn_refs and (self.dropout is None or self.dropout.p == 0) and self.is_plain_map()

    def features(
        self,
        uncond_input: Tensor | None = None,
        cond_input: Tensor | None = None,
        cond_id: CondId | None = None,
        weights: WeightsArg | None = None,
    ) -> Tensor:
        """The input of the linear output layer, so that ``h(x) = features @ weight.T + bias`` with :meth:`head`.

        Args:
            uncond_input: ``[..., n]``, any number of leading dimensions.
            cond_input: ``[..., c]``; leading dimensions are broadcast.
            cond_id: A condition, or one for each entry of the last leading dimension.
            weights: External weights, as for :meth:`forward`.

        Returns:
            Features ``[..., q]``; with ``linear_skip`` the last hidden layer followed by the input.

        Raises:
            UsageError: Unless :attr:`has_linear_head`.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> hnet = HMLP([[3, 2]], uncond_in_size=2, cond_in_size=0, layers=(4,), linear_skip=True)
            >>> hnet.features(torch.zeros(5, 7, 2)).shape
            torch.Size([5, 7, 6])
        """
        self._check_features()
        return self._features(*self._joint_input(uncond_input, cond_input, cond_id, weights))

    def _check_features(self) -> None:
        if not self.has_linear_head:
            if not self._bn_refs and (self.dropout is None or self.dropout.p == 0):
                raise UsageError(
                    "features: the network has hooks, or computes its output otherwise than an HMLP does, so that it "
                    "need not be linear in them; remove the hooks or the other forward, or give a derived class its "
                    "own features, head, feature_jacobian and has_linear_head."
                )
            raise UsageError(
                "features: with batch norm or dropout an output depends on its batch or on hidden randomness, so there "
                "are no features per sample (and no density); build the HMLP with use_batch_norm=False and "
                "dropout_rate=-1."
            )

    def _features(self, x: Tensor, full: Sequence[Tensor]) -> Tensor:
        hidden = self._hidden(x, full, update=False)
        return torch.cat([hidden, x], dim=-1) if self._linear_skip else hidden

    def _joint_input(
        self,
        uncond_input: Tensor | None,
        cond_input: Tensor | None,
        cond_id: CondId | None,
        weights: WeightsArg | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Inputs ``[..., n + c]``, checked, and the weights that go with them."""
        ids = self._check_conditional_args(cond_input, cond_id, {})
        if uncond_input is not None:
            check_input("uncond_input", uncond_input, self._uncond_in_size, dim=None)
        elif self._uncond_in_size:
            raise ArgumentError(f"uncond_input: is required; pass a tensor [..., {self._uncond_in_size}].")
        if cond_input is not None:
            check_input("cond_input", cond_input, self._cond_in_size, dim=None)
        inputs = HyperInputs(uncond_input, cond_input, ids, weights=weights)
        full = self._read_weights(inputs)
        cond = self._conditional_rows(inputs, full)
        if cond is None:
            return cast("Tensor", uncond_input), full  # one of the two sizes is positive
        if uncond_input is None:
            return cond, full
        if ids is not None and len(ids) == 1:
            cond = cond.squeeze(0)
        lead, cond_lead = uncond_input.shape[:-1], cond.shape[:-1]
        if lead != cond_lead:
            try:
                lead = torch.broadcast_shapes(lead, cond_lead)
            except RuntimeError:
                raise ArgumentError(
                    f"uncond_input: has leading dimensions {list(lead)}, the condition {list(cond_lead)}; they have to "
                    "agree or be 1."
                ) from None
        return torch.cat([uncond_input.expand(*lead, -1), cond.expand(*lead, -1)], dim=-1), full

    def head(self, weights: WeightsArg | None = None, rows: int | None = None) -> tuple[HeadWeight, Weights | None]:
        """Weight and bias of the output layer; see :meth:`features`.

        Args:
            weights: External weights, as for :meth:`forward`.
            rows: Give the first so many rows only.

        Returns:
            Weight ``[num_outputs or rows, q]`` (with ``linear_skip`` the skip's columns follow) and bias
            ``[num_outputs or rows]``, None without bias.

        Raises:
            ArgumentError: If ``rows`` is out of range.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> weight, bias = HMLP([[3, 2]], uncond_in_size=2, cond_in_size=0, layers=(4,)).head(rows=2)
            >>> weight.shape, bias.shape
            (torch.Size([2, 4]), torch.Size([2]))
        """
        if rows is not None and not 0 <= rows <= self.num_outputs:
            raise ArgumentError(f"rows: is {rows}; pass a number in 0..{self.num_outputs}, the number of outputs.")
        full = self._read_weights(HyperInputs(weights=weights))
        ref, bias_ref = self._fc_refs[-1]
        weight, bias = self._kernel(full, ref, update=False), None if bias_ref is None else full[bias_ref]
        skip = self._kernel(full, len(full) - 1, update=False) if self._linear_skip else None
        if rows is not None:
            weight, bias = weight[:rows], None if bias is None else bias[:rows]
            skip = None if skip is None else skip[:rows]
        return (weight if skip is None else torch.cat([weight, skip], dim=1)), bias

    def feature_jacobian(
        self,
        uncond_input: NoiseBatch,
        cond_input: Tensor | None = None,
        cond_id: CondId | None = None,
        weights: WeightsArg | None = None,
    ) -> Jacobians:
        """Derivatives of :meth:`features` with respect to the unconditional input, differentiable in turn.

        Args:
            uncond_input: ``[S, n]``.
            cond_input: ``[S or 1, c]``.
            cond_id: A condition, or one per sample.
            weights: External weights, as for :meth:`forward`.

        Returns:
            ``J[s, i, j] = d features_j(z_s) / d z_i``: ``[S, n, q]``.

        Raises:
            UsageError: Unless :attr:`has_linear_head`.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> hnet = HMLP([[3, 2]], uncond_in_size=2, cond_in_size=0, layers=(4,), linear_skip=True)
            >>> hnet.feature_jacobian(torch.zeros(5, 2)).shape
            torch.Size([5, 2, 6])
        """
        self._check_features()
        check_input("uncond_input", uncond_input, self._uncond_in_size)
        x, full = self._joint_input(uncond_input, cond_input, cond_id, weights)
        num, n, activation = x.shape[0], uncond_input.shape[1], self.activation_fn
        derivative = None if activation is None else elementwise_derivative(activation)
        if self.dropout is not None and has_hooks(self.dropout):
            derivative = None
        if activation is not None and derivative is None:
            return row_jacobian(lambda rows: self._features(rows, full), x)[:, :n]
        # d x / d z, [n, n + c]; without the sample dimension as long as it is the same for all samples.
        identity = torch.eye(n, x.shape[1], dtype=x.dtype, device=x.device)
        jacobian = identity
        for i, (ref, bias_ref) in enumerate(self._fc_refs[:-1]):
            matrix = self._kernel(full, ref, update=False)
            before = F.linear(x, matrix, None if bias_ref is None else full[bias_ref])
            jacobian = matrix[:, :n].t() if i == 0 else F.linear(jacobian, matrix)
            x = before
            if activation is not None and derivative is not None:
                x = activation(before)
                jacobian = derivative(before, x).unsqueeze(1) * jacobian
        jacobian = jacobian.expand(num, -1, -1)
        return torch.cat([jacobian, identity.expand(num, -1, -1)], dim=-1) if self._linear_skip else jacobian

    def far_slope(self) -> Tensor | None:
        """Weight ``[D, n + c]`` of a linear map of the input from which the output differs by no more than a bound.

        It is that of the skip, 0 without, if the last hidden layer's activation is bounded; the product of all layers
        if there is no activation. None if neither is known.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> HMLP([[3]], uncond_in_size=2, cond_in_size=0, layers=(4,), activation_fn=nn.Tanh()).far_slope()
            tensor([[0., 0.],
                    [0., 0.],
                    [0., 0.]])
            >>> HMLP([[3]], uncond_in_size=2, cond_in_size=0, layers=(4,), activation_fn=nn.ReLU()).far_slope()
        """
        full = self._read_weights(HyperInputs())
        kernels = [self._kernel(full, ref, update=False) for ref, _ in self._fc_refs]
        if len(kernels) == 1 or self.activation_fn is None:
            slope = kernels[0]
            for kernel in kernels[1:]:
                slope = kernel @ slope
        elif is_bounded(self.activation_fn):
            slope = kernels[-1].new_zeros(self.num_outputs, kernels[0].shape[1])
        else:
            return None
        return slope + self._kernel(full, len(full) - 1, update=False) if self._linear_skip else slope

    def direct_params(self) -> list[Tensor]:
        """The internal parameters that act on one output each: the output layer's bias and the skip's weight."""
        full = dict(zip(self._layout.internal, self._internal_list(), strict=True))
        refs = [self._fc_refs[-1][1], len(self._layout.records) - 1 if self._linear_skip else None]
        return [full[ref] for ref in refs if ref is not None and ref in full]

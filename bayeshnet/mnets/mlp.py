"""A multi-layer perceptron whose weights are its own, come from outside, or both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.layers.plain_modules import is_plain
from bayeshnet.layers.spectral_norm import SpectralNorm
from bayeshnet.mnets.base import MainNet
from bayeshnet.mnets.chain import Chain, LinearStep, Step, is_dropout, is_elementwise
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.typing import Activation, WeightsArg

__all__ = ["MLP"]

_LOGGER = logging.getLogger(__name__)


class MLP(MainNet):
    """A fully-connected network ``W_L f(... f(W_0 x + b_0) ...) + b_L``.

    A hidden layer is: linear, context modulation, batch norm, dropout, activation (or context modulation after the
    activation). The output layer is linear, then modulated, then ``out_fn``.

    Parameter table: gain and shift of each context-modulation layer, scale and shift of each batch-norm layer, weight
    and bias of each linear layer. Layers are numbered in the order in which they are applied, from 0.

    Args:
        n_in: Number of inputs.
        n_out: Number of outputs.
        hidden_layers: Width of each hidden layer; empty for a linear model.
        activation_fn: Nonlinearity of the hidden layers; None for the identity.
        use_bias: Give the linear layers bias vectors.
        no_weights: Do not keep the weights of linear and batch-norm layers; ``forward`` receives them.
        init_weights: Values of the internal parameters, in the order of ``internal_params``.
        dropout_rate: Dropout of the hidden layers; -1 for none.
        use_spectral_norm: Divide each weight matrix by its largest singular value.
        use_batch_norm: Normalise the hidden layers.
        bn_track_stats: Keep running statistics of the batch norm; else batch statistics are used in evaluation too.
        distill_bn_stats: Offer the running statistics by ``distillation_targets``, and accept them as
            ``distilled_params``. Without batch norm it has no effect.
        use_context_mod: Multiply and shift the activations by context-specific gains and shifts. The following options
            apply only then.
        context_mod_inputs: Modulate the inputs too.
        no_last_layer_context_mod: Do not modulate the outputs.
        context_mod_no_weights: Do not keep gains and shifts; ``forward`` receives them.
        context_mod_post_activation: Modulate hidden layers after the activation rather than before.
        context_mod_gain_offset: Multiply by ``1 + gain``.
        context_mod_gain_softplus: Multiply by ``softplus(gain)``.
        out_fn: Function of the outputs. ``forward`` then returns a pair: its value, and the outputs it was applied to.
        verbose: Log the size of the network at INFO.

    Raises:
        ArgumentError: If a size or rate is out of range, options exclude each other or ``init_weights`` do not fit.

    Example:
        >>> import torch
        >>> net = MLP(n_in=3, n_out=2, hidden_layers=(8,), activation_fn=nn.Tanh(), no_weights=True)
        >>> net.hyper_shapes_learned
        [[8, 3], [8], [2, 8], [2]]
        >>> net(torch.randn(5, 3), weights=[torch.randn(shape) for shape in net.hyper_shapes_learned]).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        n_in: int = 1,
        n_out: int = 1,
        hidden_layers: Sequence[int] = (10, 10),
        activation_fn: Activation | None = nn.ReLU(),  # noqa: B008 - the API's default; it has no state
        use_bias: bool = True,
        no_weights: bool = False,
        init_weights: Sequence[Tensor] | None = None,
        dropout_rate: float = -1,
        use_spectral_norm: bool = False,
        use_batch_norm: bool = False,
        bn_track_stats: bool = True,
        distill_bn_stats: bool = False,
        use_context_mod: bool = False,
        context_mod_inputs: bool = False,
        no_last_layer_context_mod: bool = False,
        context_mod_no_weights: bool = False,
        context_mod_post_activation: bool = False,
        context_mod_gain_offset: bool = False,
        context_mod_gain_softplus: bool = False,
        out_fn: Activation | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        sizes = [n_in, *hidden_layers, n_out]
        if any(size < 1 for size in sizes):
            raise ArgumentError(f"n_in, hidden_layers, n_out: are {sizes}; pass sizes of at least 1.")
        if dropout_rate != -1 and not 0 <= dropout_rate <= 1:
            raise ArgumentError(f"dropout_rate: is {dropout_rate}; pass a number in [0, 1], or -1 for none.")
        if use_batch_norm and distill_bn_stats and not bn_track_stats:
            raise ArgumentError("distill_bn_stats: needs running statistics; pass bn_track_stats=True with it.")
        self._widths = sizes
        self._mod_inputs = use_context_mod and context_mod_inputs
        self._mod_hidden = use_context_mod
        self._mod_outputs = use_context_mod and not no_last_layer_context_mod
        self._mod_after = context_mod_post_activation
        self._use_batch_norm = use_batch_norm
        self._has_bias = use_bias
        self._has_fc_out = self._mask_fc_out = True
        self._has_linear_out = out_fn is None
        self._build(
            self._describe(),
            no_weights=no_weights,
            mod_no_weights=context_mod_no_weights,
            mod_options={
                "apply_gain_offset": context_mod_gain_offset,
                "apply_gain_softplus": context_mod_gain_softplus,
            },
            track_stats=bn_track_stats,
            distill_stats=distill_bn_stats,
        )
        matrices = [record.shape for record in self.param_table if record.name == "weight"]
        self.spectral_norm = SpectralNorm(matrices) if use_spectral_norm else None
        self.dropout = None if dropout_rate == -1 else nn.Dropout(dropout_rate)
        self.activation_fn = activation_fn
        self.out_fn = out_fn
        if init_weights is not None:
            self._init_from(init_weights)
        if verbose:
            _LOGGER.info("MLP with %d weights, %d of them its own.", self.num_params, self.num_internal_params)

    def _describe(self) -> list[ParamRecord]:
        """The table: layers are numbered as they are applied, records sorted by their kind."""
        mods: list[ParamRecord] = []
        norms: list[ParamRecord] = []
        linears: list[ParamRecord] = []
        layer = 0

        def add(records: list[ParamRecord], names: Sequence[str], *shapes: tuple[int, ...]) -> None:
            nonlocal layer
            records += [ParamRecord(shape, name, layer) for name, shape in zip(names, shapes, strict=True)]
            layer += 1

        if self._mod_inputs:
            add(mods, ("cm_scale", "cm_shift"), (self._widths[0],), (self._widths[0],))
        for i, (fan_in, fan_out) in enumerate(pairwise(self._widths)):
            last, width = i == len(self._widths) - 2, (fan_out,)
            if self._has_bias:
                add(linears, ("weight", "bias"), (fan_out, fan_in), width)
            else:
                add(linears, ("weight",), (fan_out, fan_in))
            modulated = self._mod_outputs if last else self._mod_hidden
            if modulated and (last or not self._mod_after):
                add(mods, ("cm_scale", "cm_shift"), width, width)
            if self._use_batch_norm and not last:
                add(norms, ("bn_scale", "bn_shift"), width, width)
            if modulated and self._mod_after and not last:
                add(mods, ("cm_scale", "cm_shift"), width, width)
        return [*mods, *norms, *linears]

    @staticmethod
    def weight_shapes(
        n_in: int = 1, n_out: int = 1, hidden_layers: Sequence[int] = (10, 10), use_bias: bool = True
    ) -> list[list[int]]:
        """Shapes of the weights and biases of a plain MLP.

        Example:
            >>> MLP.weight_shapes(3, 1, [5])
            [[5, 3], [5], [1, 5], [1]]
        """
        return MLP(n_in, n_out, hidden_layers, use_bias=use_bias, no_weights=True, verbose=False).param_shapes

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        x: Tensor,
        weights: WeightsArg | None = None,
        distilled_params: Sequence[Tensor] | None = None,
        condition: Any = None,
    ) -> Any:
        """Compute the outputs.

        Args:
            x: Inputs ``[B, n_in]``; without batch norm also one sample ``[n_in]``, or more dimensions ``[..., n_in]``.
            weights: External weights: a list with one tensor per entry of :attr:`param_shapes` or of
                :attr:`hyper_shapes_learned`; a list of all gains and shifts; or a dict with ``"internal_weights"`` (all
                but gains and shifts), ``"mod_weights"`` (gains and shifts), or both. What is not given is the
                network's own. Gains and shifts may be ``[B, size]``: separate ones per sample.
            distilled_params: Statistics for the batch norm, as given by ``distillation_targets``.
            condition: Number of the set of batch-norm statistics, the newest by default; or a dict with
                ``"bn_stats_id"``, ``"cmod_ckpt_id"`` (a checkpoint of gains and shifts), or both.

        Returns:
            Outputs ``[B, n_out]`` (``[n_out]``, ``[..., n_out]``); with ``out_fn`` the pair
            ``(out_fn(outputs), outputs)``.

        Raises:
            ArgumentError: If shapes do not fit, or weights that the network does not keep are missing.
            ArgumentTypeError: If ``x`` is no tensor.
        """
        self._check_input(x)
        call = self._parse_call(weights, distilled_params, condition)
        num_norms = 2 * (len(self._widths) - 2) * self._use_batch_norm
        norms, linears = call.weights[:num_norms], call.weights[num_norms:]
        step = 1 + self._has_bias
        matrices = linears[::step]
        if self.spectral_norm is not None:
            matrices = self.spectral_norm.normalize(matrices, update=self.training and call.own_weights)
        mod = 0
        if self._mod_inputs:
            x, mod = self._modulate(call, mod, x), mod + 1
        for i, matrix in enumerate(matrices):
            x = F.linear(x, matrix, linears[i * step + 1] if self._has_bias else None)
            if i == len(matrices) - 1:
                break
            if self._mod_hidden and not self._mod_after:
                x, mod = self._modulate(call, mod, x), mod + 1
            if norms:
                x = self._normalise(call, i, x, *norms[2 * i : 2 * i + 2])
            if self.dropout is not None:
                x = self.dropout(x)
            if self.activation_fn is not None:
                x = self.activation_fn(x)
            if self._mod_hidden and self._mod_after:
                x, mod = self._modulate(call, mod, x), mod + 1
        if self._mod_outputs:
            x = self._modulate(call, mod, x)
        return x if self.out_fn is None else (self.out_fn(x), x)

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"x: is {kind_of(x)}; pass a tensor [B, {self._widths[0]}].")
        n_in = self._widths[0]
        if x.dim() == 0 or x.shape[-1] != n_in:
            hint = " For scalar inputs pass x.unsqueeze(1)." if x.dim() == 1 and n_in == 1 else ""
            raise ArgumentError(
                f"x: has shape {list(x.shape)}; this network takes [B, {n_in}], or [{n_in}] for one sample.{hint}"
            )
        if x.dim() != 2 and self._use_batch_norm:
            raise ArgumentError(
                f"x: has shape {list(x.shape)}; with batch norm this network takes a batch [B, {n_in}]: pass "
                f"x.reshape(-1, {n_in})."
            )

    def as_chain(self) -> Chain | None:
        """The network as a chain of linear layers and element-wise functions, None with more than that in it."""
        special = self._num_mods or self._use_batch_norm or self.spectral_norm is not None or self.out_fn is not None
        if special or not is_plain(self, MLP.forward):
            return None
        between = [fn for fn in (self.dropout, self.activation_fn) if fn is not None]
        if not all(is_dropout(fn) or is_elementwise(fn) for fn in between):
            return None
        steps: list[Step] = []
        for i in range(len(self._widths) - 1):
            ref = i * (1 + self._has_bias)
            steps += [LinearStep(ref, ref + 1 if self._has_bias else None), *between]
        shapes = tuple(record.shape for record in self.param_table)
        return Chain(tuple(steps[: len(steps) - len(between)]), shapes)

"""A wrapper that perturbs the output of a hypernetwork, so that its weights have a density."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets.arguments import HyperInputs, expand_rows, parse_cond_id
from bayeshnet.hnets.base import HyperNet
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan_parts import Part, Places, inner_parts
from bayeshnet.mnets.own_lists import kept_params
from bayeshnet.typing import CondId, Scalar, Weights

if TYPE_CHECKING:
    from bayeshnet.layers.batch_norm import BatchNormLayer
    from bayeshnet.layers.context_mod import ContextModLayer

__all__ = ["HPerturbWrapper", "InputHandler", "OutputHandler"]

_LOGGER = logging.getLogger(__name__)

InputHandler: TypeAlias = Callable[..., "tuple[Tensor | None, Tensor | None, Any]"]
"""``uncond_input, cond_input, cond_id = handler(uncond_input=..., cond_input=..., cond_id=...)``."""

OutputHandler: TypeAlias = Callable[..., Tensor]
"""``flat = handler(flat, uncond_input=..., cond_input=..., cond_id=...)``."""

_NOISES = ("shared", "independent")
_LEARNABLE = (None, "scalar", "per_weight")


class HPerturbWrapper(HyperNet):
    r"""Adds noise to the weights that a hypernetwork makes, or processes its inputs and outputs otherwise.

    With D = ``num_outputs`` and n = ``hnet_uncond_in_size``, for ``noise="shared"`` (z in R^D) and for
    ``noise="independent"`` (z in R^(n + D)):

    .. math:: w = h(z_{1:n}) + \sigma z \qquad\text{and}\qquad w = h(z_{1:n}) + \sigma z_{n+1:n+D}

    For z ~ N(0, I) both are implicit distributions on R^D with a density. Independent noise gives every w a positive
    one. Shared noise does if :math:`u \mapsto h(u)_{1:n} + \sigma_{1:n} u` takes every value in R^n, as it does for a
    bounded h (a bounded activation in the last hidden layer), and for a bounded h plus a linear map A of the input
    (``linear_skip``) if :math:`A_{1:n} + \mathrm{diag}(\sigma_{1:n})` is invertible. Any other h may leave holes:
    ``h(u) = |u|`` with a scale of 0.02 makes nothing below 0. :func:`~bayeshnet.entropy.has_full_support` says what is
    known of one.

    Handlers replace either half: ``w = output_handler(h(*input_handler(...)), ...)``.

    The table of parameters is that of the wrapped network. A learned scale is a parameter beside it,
    ``log_sigma_noise``.

    Args:
        hnet: The hypernetwork, any that implements the interface.
        hnet_uncond_in_size: n; by default ``hnet.uncond_in_size``. Ignored if there is an ``input_handler``.
        sigma_noise: Standard deviation of the perturbation, or its start if it is learned. Ignored if there is an
            ``output_handler``.
        input_handler: Makes the inputs of ``hnet`` from those of ``forward``.
        output_handler: Makes the flat output from that of ``hnet`` and the inputs of ``forward``.
        verbose: Log the configuration at INFO.
        noise: ``"shared"`` uses the first entries twice, ``"independent"`` does not.
        learn_sigma: Learn the scale: one ``"scalar"``, or one ``"per_weight"``.

    Raises:
        ArgumentError: If a size, a scale or an option is not accepted.
        ArgumentTypeError: If ``hnet`` is not a hypernetwork or a handler cannot be called.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HPerturbWrapper(HMLP([[5, 2], [5]], uncond_in_size=3, cond_in_size=0), learn_sigma="per_weight")
        >>> hnet.uncond_in_size, hnet.sigma.shape
        (15, torch.Size([15]))
        >>> hnet(torch.randn(7, 15), ret_format="flattened").shape
        torch.Size([7, 15])
    """

    _sigma_noise: Tensor | None
    log_sigma_noise: nn.Parameter | None

    def __init__(
        self,
        hnet: HyperNetInterface,
        hnet_uncond_in_size: int | None = None,
        sigma_noise: float = 0.02,
        input_handler: InputHandler | None = None,
        output_handler: OutputHandler | None = None,
        verbose: bool = True,
        *,
        noise: Literal["shared", "independent"] = "shared",
        learn_sigma: Literal["scalar", "per_weight"] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(hnet, HyperNetInterface) or not isinstance(hnet, nn.Module):
            raise ArgumentTypeError(f"hnet: is {kind_of(hnet)}; pass an nn.Module that implements HyperNetInterface.")
        if noise not in _NOISES:
            raise ArgumentError(f"noise: is {noise!r}; pass one of {_NOISES}.")
        if learn_sigma not in _LEARNABLE:
            raise ArgumentError(f"learn_sigma: is {learn_sigma!r}; pass one of {_LEARNABLE}.")
        handlers = {"input_handler": input_handler, "output_handler": output_handler}
        for name, handler in handlers.items():
            if handler is not None and not callable(handler):
                raise ArgumentTypeError(f"{name}: is {kind_of(handler)}; pass a function.")
        if learn_sigma is not None and output_handler is not None:
            raise ArgumentError("learn_sigma: has no effect with an output_handler, which makes the output; pass one.")
        self._hnet: HyperNetInterface = hnet  # a registered submodule: train() and to() reach it
        self._input_handler = input_handler
        self._output_handler = output_handler
        self._noise: Literal["shared", "independent"] = noise
        num = hnet.num_outputs
        self._n = None if input_handler is not None else _read_input_size(hnet, hnet_uncond_in_size)
        if noise == "shared" and output_handler is None and self._n is not None and self._n > num:
            raise ArgumentError(
                f"hnet_uncond_in_size: {self._n} is more than the {num} weights, so shared noise does not suffice; "
                'make it smaller or use noise="independent".'
            )
        self._init_sigma(sigma_noise, learn_sigma, num)
        size = None
        if self._n is not None and output_handler is None:
            size = num if noise == "shared" else self._n + num
        self._describe(hnet.param_table, hnet.target_shapes, num_known_conds=hnet.num_known_conds, uncond_in_size=size)
        self._has_bias, self._mask_fc_out = hnet.has_bias, hnet.mask_fc_out
        if verbose:
            _LOGGER.info("Wrapped %s: %s noise of size %s, %d outputs.", type(hnet).__name__, noise, size, num)

    def _init_sigma(self, sigma_noise: float, learn_sigma: str | None, num_outputs: int) -> None:
        if not math.isfinite(sigma_noise) or sigma_noise < 0 or (learn_sigma and sigma_noise == 0):
            wanted = "a positive number (its logarithm is learned)" if learn_sigma else "0 or a positive number"
            raise ArgumentError(f"sigma_noise: is {sigma_noise}; pass {wanted}.")
        params = self._hnet.internal_params
        dtype = params[0].dtype if params is not None and len(params) else torch.get_default_dtype()
        device = params[0].device if params is not None and len(params) else None
        if learn_sigma is None:
            self.register_buffer("_sigma_noise", torch.tensor(sigma_noise, dtype=dtype, device=device))
            self.register_parameter("log_sigma_noise", None)
        else:
            shape = () if learn_sigma == "scalar" else (num_outputs,)
            start = torch.full(shape, math.log(sigma_noise), dtype=dtype, device=device)
            self.register_buffer("_sigma_noise", None)
            self.register_parameter("log_sigma_noise", nn.Parameter(start))

    # ------------------------------------------------------------------ the map

    def not_compared(self) -> tuple[str, ...]:
        """The start of a noise scale that is learned, beside what a network does not compare."""
        return (*super().not_compared(), *(() if self.log_sigma_noise is None else ("sigma_noise",)))

    def _parse_cond_id(self, cond_id: CondId) -> tuple[int, ...]:
        # With a handler an id may mean anything; the wrapped network checks those that it gets.
        return parse_cond_id(cond_id, self._num_known_conds if self._input_handler is None else None)

    def _read_weights(self, inputs: HyperInputs) -> list[Tensor]:
        # The wrapped network has the same table: it reads the argument itself.
        return []

    def _generate(self, inputs: HyperInputs, weights: list[Tensor]) -> Tensor:
        original = {
            "uncond_input": inputs.uncond_input,
            "cond_input": inputs.cond_input,
            "cond_id": inputs.cond_id_arg,
        }
        if self._input_handler is None:
            ids = inputs.cond_id
            uncond, cond = self._leading_entries(inputs), inputs.cond_input
            cond_id = None if ids is None else ids[0] if len(ids) == 1 else list(ids)
        else:
            handled: Any = self._input_handler(**original)
            if not isinstance(handled, (tuple, list)) or len(handled) != 3:
                got = f"a tuple of {len(handled)}" if isinstance(handled, (tuple, list)) else kind_of(handled)
                raise ArgumentError(
                    f"input_handler: returned {got}; let it return the three values uncond_input, cond_input, cond_id."
                )
            uncond, cond, cond_id = handled
        out = cast("nn.Module", self._hnet)(
            uncond_input=uncond,
            cond_input=cond,
            cond_id=cond_id,
            weights=inputs.weights,
            distilled_params=inputs.distilled_params,
            condition=inputs.condition,
            ret_format="flattened",
        )
        if self._output_handler is None:
            return torch.addcmul(out, self._perturbation(inputs), self.sigma)
        out = self._output_handler(out, **original)
        if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[1] != self.num_outputs:
            got = f"shape {list(out.shape)}" if isinstance(out, Tensor) else kind_of(out)
            raise ArgumentError(f"output_handler: returned {got}; let it return a tensor [batch, {self.num_outputs}].")
        return out

    def _leading_entries(self, inputs: HyperInputs) -> Tensor | None:
        """The input of the wrapped network, z[:n]."""
        if not self._n:
            return None
        z = inputs.uncond_input
        if z is None or z.shape[1] < self._n:
            got = "is None" if z is None else f"has shape {list(z.shape)}"
            raise ArgumentError(f"uncond_input: {got}; pass at least [batch, {self._n}] for the wrapped network.")
        # Other implementations of the interface need not broadcast a single row themselves.
        return expand_rows(z, inputs.batch_size)[:, : self._n]

    def _perturbation(self, inputs: HyperInputs) -> Tensor:
        """The noise ``[B or 1, D]``: all entries of the input, or the last D."""
        z, num = inputs.uncond_input, self.num_outputs
        if z is None:
            raise ArgumentError(f"uncond_input: is None; pass a tensor with the noise on the {num} weights.")
        if self._noise == "independent" and z.shape[1] > num:
            z = z[:, z.shape[1] - num :]
        if z.shape[1] != num:
            raise ArgumentError(f"uncond_input: has shape {list(z.shape)}; pass noise for {num} weights.")
        return z

    def init_parts(self, places: Sequence[Places]) -> list[Part]:
        """See :meth:`bayeshnet.hnets.hyperfan_parts.Initialisable.init_parts`."""
        return inner_parts(self._hnet, places)

    # ------------------------------------------------------------------ what is wrapped

    @property
    def internal_hnet(self) -> HyperNetInterface:
        """The wrapped hypernetwork."""
        return self._hnet

    @property
    def input_handler(self) -> InputHandler | None:
        """The function that makes the inputs of the wrapped network, or None."""
        return self._input_handler

    @property
    def output_handler(self) -> OutputHandler | None:
        """The function that makes the output, or None."""
        return self._output_handler

    @property
    def noise(self) -> Literal["shared", "independent"]:
        """Whether the first entries of the input are used twice."""
        return self._noise

    @property
    def hnet_uncond_in_size(self) -> int | None:
        """How many entries the wrapped network receives; None if an ``input_handler`` decides."""
        return self._n

    @property
    def sigma(self) -> Scalar | Weights:
        """Standard deviation of the perturbation, ``[]`` or ``[D]``, differentiable if it is learned."""
        if self.log_sigma_noise is not None:
            return self.log_sigma_noise.exp()
        return cast("Tensor", self._sigma_noise)

    def draw_noise(self, num: int) -> Tensor:
        """Draw ``num`` inputs from N(0, I), ``[num, uncond_in_size]``, in the dtype and on the device of the scale.

        Raises:
            UsageError: If handlers decide what the input is.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0), noise="independent").draw_noise(7).shape
            torch.Size([7, 5])
        """
        size, learned = self._uncond_in_size, self.log_sigma_noise
        like = cast("Tensor", self._sigma_noise) if learned is None else learned
        if size is None:
            raise UsageError("draw_noise: the wrapper has handlers, which decide what its input is; draw it there.")
        # One call draws all, so that the stream of random numbers does not depend on the noise's kind or form.
        return torch.randn(num, size, dtype=like.dtype, device=like.device)

    @property
    def cond_in_size(self) -> int | None:
        """Size of the wrapped network's conditional input; None if it is not known."""
        return getattr(self._hnet, "cond_in_size", None)

    @property
    def internal_params(self) -> nn.ParameterList | None:
        """The parameters that the wrapped network keeps."""
        return self._hnet.internal_params

    def _internal_list(self) -> list[Tensor]:
        return [*kept_params(self._hnet)]

    # A network that keeps lists itself may have orders of its own; its weights are passed on as they come.

    @property
    def param_shapes_meta(self) -> list[dict[str, Any]]:
        """What the parameters of the wrapped network are."""
        return self._hnet.param_shapes_meta

    @property
    def unconditional_param_shapes_ref(self) -> list[int]:
        """Indices of the unconditional shapes of the wrapped network."""
        return self._hnet.unconditional_param_shapes_ref

    @property
    def unconditional_params_ref(self) -> list[int] | None:
        """Indices of the unconditional parameters of the wrapped network."""
        return self._hnet.unconditional_params_ref

    @property
    def layer_weight_tensors(self) -> list[Tensor]:
        """The weight tensors of the wrapped network."""
        return self._hnet.layer_weight_tensors

    @property
    def layer_bias_vectors(self) -> list[Tensor]:
        """The bias vectors of the wrapped network."""
        return self._hnet.layer_bias_vectors

    @property
    def hyper_shapes_distilled(self) -> list[list[int]] | None:
        """Shapes of the statistics of the wrapped network."""
        return self._hnet.hyper_shapes_distilled

    @property
    def batchnorm_layers(self) -> Sequence[BatchNormLayer] | nn.ModuleList | None:
        """The batch-norm layers of the wrapped network."""
        return self._hnet.batchnorm_layers

    @property
    def context_mod_layers(self) -> Sequence[ContextModLayer] | nn.ModuleList | None:
        """The context-modulation layers of the wrapped network."""
        return self._hnet.context_mod_layers

    def distillation_targets(self) -> list[Tensor] | None:
        """Return the statistics of the wrapped network."""
        return self._hnet.distillation_targets()


def _read_input_size(hnet: HyperNetInterface, given: int | None) -> int:
    """The number of entries that the wrapped network receives."""
    known = getattr(hnet, "uncond_in_size", None)
    if given is None:
        if known is None:
            raise ArgumentError(
                f"hnet_uncond_in_size: {type(hnet).__name__} does not tell the size of its unconditional input "
                "(no attribute `uncond_in_size`); give the class this attribute, or pass the size to the wrapper: "
                f"HPerturbWrapper({type(hnet).__name__}(...), hnet_uncond_in_size=4), which "
                "AutoHypernet(hnet=lambda shapes: ...) takes, too."
            )
        return known
    if given < 0 or (known is not None and given != known):
        wanted = "0 or more" if known is None else f"{known}, that of the wrapped network"
        raise ArgumentError(f"hnet_uncond_in_size: is {given}; pass {wanted}.")
    return given

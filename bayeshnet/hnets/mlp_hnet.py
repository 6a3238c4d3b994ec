"""A fully-connected hypernetwork that makes all weights at once."""

from __future__ import annotations

import logging
import math
from collections.abc import MutableMapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.checks import shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets.arguments import check_activation, check_sizes, no_embeddings, read_target_shapes
from bayeshnet.hnets.base import HyperNet
from bayeshnet.hnets.hyperfan import hyperfan_init
from bayeshnet.hnets.hyperfan_heads import HeadPart
from bayeshnet.hnets.hyperfan_parts import Places
from bayeshnet.hnets.mlp_features import MLPFeatures
from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.layers.plain_modules import all_plain
from bayeshnet.mnets.param_table import ParamRecord, num_weights
from bayeshnet.typing import Activation, InputRows, OutputRows, Shapes

__all__ = ["HMLP"]

_LOGGER = logging.getLogger(__name__)
# As torch defines them, whoever replaces them later.
_TANH_FORWARD, _DROPOUT_FORWARD = nn.Tanh.forward, nn.Dropout.forward


class HMLP(MLPFeatures):
    """A multi-layer perceptron from an input, an embedding or both to the weights of a target network.

    With ``x = [uncond_input, cond_input]`` and L hidden layers
    ``f_l = activation(dropout(batch_norm(W_l f_{l-1} + b_l)))``, ``f_0 = x``, the output is ``W f_L + b``: one linear
    head per target tensor, stacked in the rows of one matrix ``[num_outputs, q]``. Without hidden layers it is linear
    in x. Spectral norm follows Miyato et al. 2018 (https://arxiv.org/abs/1802.05957).

    Parameter table: the embeddings; a scale and a shift per batch-norm layer (layers 2, 4, ...); weight and bias of
    each fully-connected layer (layers 1, 3, ...); the weight of the skip connection.

    Args:
        target_shapes: Shapes of the weights to produce.
        uncond_in_size: Size of the unconditional input, such as noise.
        cond_in_size: Size of the conditional input.
        layers: Width of each hidden layer; empty for a linear hypernetwork.
        verbose: Log the size of the network at INFO.
        activation_fn: Nonlinearity of the hidden layers; None for the identity.
        use_bias: Give the fully-connected layers bias vectors.
        no_uncond_weights: Do not keep the weights; ``forward`` receives them.
        no_cond_weights: Do not keep the embeddings; ``forward`` receives them.
        num_cond_embs: Number of embeddings, the conditions of ``cond_id``. With 0 conditional inputs come as
            ``cond_input`` only.
        dropout_rate: Dropout of the hidden layers; -1 for none.
        use_spectral_norm: Divide each weight matrix by its largest singular value.
        use_batch_norm: Normalise the hidden layers over the batch.
        linear_skip: Add a linear map of the input: ``W f_L + b + A x``.
        gains: A positive factor of each weight matrix, those of the layers and then that of the skip: a parameter V
            stands for the matrix ``gain * V``, and starts so that the matrix starts as without. An optimiser whose
            steps do not depend on the scale of gradients, such as Adam, then moves the matrix by ``gain * lr``
            ("equalised learning rate", Karras et al. 2018, https://arxiv.org/abs/1710.10196). A buffer keeps them.

    Raises:
        ArgumentError: If a size, a rate or a gain is out of range, or there is neither kind of input.

    Example:
        >>> import torch
        >>> hnet = HMLP([[10, 5], [10]], uncond_in_size=4, cond_in_size=3, num_cond_embs=2, layers=(16, 16))
        >>> weight, bias = hnet(torch.randn(1, 4), cond_id=0)
        >>> weight.shape, bias.shape
        (torch.Size([10, 5]), torch.Size([10]))
    """

    gains: Tensor | None

    def __init__(
        self,
        target_shapes: Shapes,
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
        *,
        linear_skip: bool = False,
        gains: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        target_shapes = read_target_shapes(target_shapes)
        check_sizes(uncond_in_size=uncond_in_size, cond_in_size=cond_in_size, num_cond_embs=num_cond_embs)
        _check_layers(uncond_in_size + cond_in_size, layers, dropout_rate)
        if cond_in_size == 0:
            num_cond_embs = no_embeddings(num_cond_embs)
        self.activation_fn = check_activation(activation_fn)
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate != -1 else None
        self._has_bias = use_bias
        self._has_fc_out = self._mask_fc_out = self._has_linear_out = True
        self._linear_skip = linear_skip

        in_size = uncond_in_size + cond_in_size
        keep, keep_cond = not no_uncond_weights, not no_cond_weights
        records = [
            ParamRecord((cond_in_size,), "embedding", 0, conditional=True, internal=keep_cond, condition=i)
            for i in range(num_cond_embs)
        ]
        self._bn_refs: list[int] = []
        for i, width in enumerate(layers if use_batch_norm else ()):
            self._bn_refs.append(len(records))
            records += [ParamRecord((width,), name, 2 * i + 2, internal=keep) for name in ("bn_scale", "bn_shift")]
        num_outputs = num_weights(target_shapes)
        widths = [in_size, *layers, num_outputs]
        self._fc_refs: list[tuple[int, int | None]] = []
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            layer = 2 * i + 1
            self._fc_refs.append((len(records), len(records) + 1 if use_bias else None))
            records.append(ParamRecord((fan_out, fan_in), "weight", layer, internal=keep))
            if use_bias:
                records.append(ParamRecord((fan_out,), "bias", layer, internal=keep))
        if linear_skip:
            records.append(ParamRecord((num_outputs, in_size), "weight", 2 * len(layers) + 1, internal=keep))
        self._describe(
            records,
            target_shapes,
            num_known_conds=num_cond_embs,
            uncond_in_size=uncond_in_size,
            cond_in_size=cond_in_size,
            embedding_refs=range(num_cond_embs),
        )
        self._create_params()
        if self._bn_refs:
            # The affine parameters are in the table, so that they may be external too.
            self._batchnorm_layers = nn.ModuleList([BatchNormLayer(width, affine=False) for width in layers])
        if use_spectral_norm:
            self._normalise([i for i, record in enumerate(records) if record.name == "weight"])
        matrices = len(self._fc_refs) + linear_skip
        self.register_buffer("gains", None if gains is None else _checked_gains(gains, matrices))
        self._reset_parameters()
        if verbose:
            uncond = sum(records[ref].numel for ref in self._layout.uncond)
            _LOGGER.info(
                "Created HMLP: %d outputs, %d unconditional and %d conditional weights.",
                num_outputs,
                uncond,
                self.num_params - uncond,
            )

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """PyTorch's default for linear layers; embeddings N(0, 1); batch norm the identity."""
        for ref, param in zip(self._layout.internal, self._internal_list(), strict=True):
            record = self._layout.records[ref]
            if record.name == "embedding":
                nn.init.normal_(param)
            elif record.name == "weight":
                nn.init.kaiming_uniform_(param, a=math.sqrt(5))
            elif record.name == "bias":
                bound = 1 / math.sqrt(self._layout.shapes[ref - 1][1])  # fan-in of the weight just before
                nn.init.uniform_(param, -bound, bound)
            else:
                nn.init.constant_(param, 1.0 if record.name == "bn_scale" else 0.0)
        self._divide_by_gains(self._internal_list(), self._layout.internal)

    # ------------------------------------------------------------------ factors of the weight matrices

    @torch.no_grad()
    def _divide_by_gains(self, tensors: Sequence[Tensor], refs: Sequence[int]) -> None:
        """Turn weight matrices into the parameters that stand for them, in place."""
        gains = self.gains
        for ref, tensor in zip(refs, tensors, strict=True) if gains is not None else ():
            if gains is not None and self._layout.records[ref].name == "weight":
                tensor.div_(gains[self._matrix_of(ref)])

    def _matrix_of(self, ref: int) -> int:
        """Number of a weight matrix by its place in the table, as in ``gains``."""
        refs = [weight for weight, _ in self._fc_refs]
        return refs.index(ref) if ref in refs else len(refs)

    def _kernel(self, weights: Sequence[Tensor], ref: int, *, update: bool = True) -> Tensor:
        kernel = super()._kernel(weights, ref, update=update)
        return kernel if self.gains is None else kernel * self.gains[self._matrix_of(ref)]

    def adopt_state(self, state: MutableMapping[str, Tensor], prefix: str) -> None:
        """Let a state dict that was saved without ``gains`` stand for the same matrices, in place.

        Args:
            state: Tensors by key.
            prefix: What precedes the keys of this network.

        Example:
            >>> plain, scaled = (HMLP([[3]], 2, 0, layers=(), gains=gains) for gains in (None, [0.5]))
            >>> scaled.load_state_dict(plain.state_dict())
            <All keys matched successfully>
            >>> z = torch.randn(4, 2)
            >>> torch.equal(plain(z, ret_format="flattened"), scaled(z, ret_format="flattened"))
            True
        """
        if self.gains is None or f"{prefix}gains" in state:
            return
        keys = [f"{prefix}_internal_params.{i}" for i in range(len(self._layout.internal))]
        if all(key in state for key in keys):
            state.update({key: state[key].clone() for key in keys})
            self._divide_by_gains([state[key] for key in keys], self._layout.internal)
            state[f"{prefix}gains"] = self.gains.to(state[keys[0]])

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride] - all are passed by position
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        self.adopt_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ------------------------------------------------------------------ the map

    def generate_rows(self, x: InputRows, weights: Sequence[Tensor], condition: Any = None) -> OutputRows:
        """See :meth:`bayeshnet.hnets.full.FullHyperNet.generate_rows`."""
        hidden = self._hidden(x, weights, condition)
        ref, bias_ref = self._fc_refs[-1]
        out = F.linear(hidden, self._kernel(weights, ref), None if bias_ref is None else weights[bias_ref])
        # addmm: no second [B, num_outputs] in memory.
        return torch.addmm(out, x, self._kernel(weights, len(weights) - 1).t()) if self._linear_skip else out

    @property
    def has_linear_head(self) -> bool:
        """Whether :meth:`features` and :meth:`head` apply: not with batch norm, dropout, hooks or another forward."""
        own = type(self).generate_rows is HMLP.generate_rows and "generate_rows" not in self.__dict__
        return own and super().has_linear_head

    def tanh_layers(self, wrapper: HyperNet | None = None) -> list[Tensor | None] | None:
        """The weights, if a call is nothing but a chain of tanh layers with a linear output layer: for fused forms.

        Read at each call, since hooks, a ``forward`` and a mode can be set at any time. All that has to hold is asked
        here: no derived class, conditions, external weights, batch norm, dropout or spectral norm, and no hooks or
        replaced methods of the network, of its activation or of the wrapper.

        Args:
            wrapper: A hypernetwork around this one whose call has to be plain, too.

        Returns:
            Weight and bias of each layer, those of the output layer last, and the weight of the skip; None for a bias
            or a skip that is not there. None altogether for any other network.

        Example:
            >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, layers=(4,), activation_fn=nn.Tanh())
            >>> [None if part is None else tuple(part.shape) for part in hnet.tanh_layers()]
            [(4, 2), (4,), (3, 4), (3,), None]
            >>> handle = hnet.register_forward_hook(lambda module, args, out: -out)
            >>> hnet.tanh_layers() is None
            True
        """
        activation, dropout, own = self.activation_fn, self.dropout, self.__dict__
        if type(self) is not HMLP or "generate_rows" in own or "_generate" in own:
            return None
        if self._bn_refs or self._cond_in_size or self._layout.external or self._spectral_norms is not None:
            return None
        calls: list[tuple[nn.Module, Any]] = [(self, HyperNet.forward)]
        if isinstance(activation, nn.Tanh) and type(activation) is nn.Tanh:
            calls.append((activation, _TANH_FORWARD))
        elif activation is not torch.tanh:
            return None
        if dropout is not None:
            if dropout.p != 0:
                return None
            calls.append((dropout, _DROPOUT_FORWARD))
        if wrapper is not None:
            calls.append((wrapper, HyperNet.forward))
        if not all_plain(calls):
            return None
        internal = cast("nn.ParameterList", self._internal_params)  # all are internal
        full = [*cast("dict[str, Tensor]", internal.__dict__["_parameters"]).values()]
        if len(full) != len(internal):  # one is no parameter any more
            return None
        layers: list[Tensor | None] = []
        for ref, bias_ref in self._fc_refs:
            layers += [self._kernel(full, ref), None if bias_ref is None else full[bias_ref]]
        return [*layers, self._kernel(full, len(full) - 1) if self._linear_skip else None]

    # ------------------------------------------------------------------ initialisation

    apply_hyperfan_init = hyperfan_init

    def init_parts(self, places: Sequence[Places]) -> list[HeadPart]:
        """See :meth:`bayeshnet.hnets.hyperfan_parts.Initialisable.init_parts`."""
        if self.gains is not None:
            raise UsageError(
                "hnet: is an HMLP with gains, whose parameters are not the weights that hyperfan has formulas for; "
                "build it without gains, or leave its start as it is."
            )
        return [HeadPart(self, tuple(places), self.uncond_in_size, self.cond_in_size, self.activation_fn)]

    # ------------------------------------------------------------------ interface

    # What subclasses written for the reference read.

    @property
    def _act_fn(self) -> Activation | None:
        return self.activation_fn

    @property
    def _dropout_rate(self) -> float:
        return -1 if self.dropout is None else self.dropout.p

    @property
    def _use_batch_norm(self) -> bool:
        return len(self._bn_refs) > 0

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a module under the name of a property, which hides it.
        super().__setattr__("activation_fn" if name == "_act_fn" else name, value)

    def get_output_weight_mask(
        self, out_inds: Sequence[int] | None = None, device: torch.device | str | int | None = None
    ) -> list[Tensor | None]:
        """See :meth:`~bayeshnet.mnets.mnet_interface.MainNetInterface.get_output_weight_mask`."""
        masks = super().get_output_weight_mask(out_inds, device)
        last = masks[-1]
        if self._linear_skip and last is not None:
            # The skip is a part of the output layer: its rows are masked with the others.
            ref, bias_ref = self._fc_refs[-1]
            masks[ref] = last[:, :1].expand(self._layout.shapes[ref]).clone()
            if bias_ref is not None:
                masks[bias_ref] = last[:, 0].clone()
        return masks


def _check_layers(in_size: int, layers: Sequence[int], dropout_rate: float) -> None:
    if in_size == 0:
        raise ArgumentError("uncond_in_size: and cond_in_size are both 0; a hypernetwork needs an input of some kind.")
    if isinstance(layers, str) or not hasattr(layers, "__iter__"):
        raise ArgumentTypeError(f"layers: is {shown(layers)}; pass a list of widths such as (100, 100).")
    for width in layers:
        check_sizes(layers=width)
        if width < 1:
            raise ArgumentError(
                f"layers: is {list(layers)}, with a width below 1; pass positive widths, or leave the entry out."
            )
    if not isinstance(dropout_rate, int | float):
        raise ArgumentTypeError(f"dropout_rate: is {shown(dropout_rate)}; pass a number in [0, 1], or -1 for none.")
    if dropout_rate != -1 and not 0 <= dropout_rate <= 1:
        raise ArgumentError(f"dropout_rate: is {dropout_rate}; pass a number in [0, 1], or -1 for none.")


def _checked_gains(gains: Sequence[float], num: int) -> Tensor:
    values = torch.tensor([float(gain) for gain in gains])
    if len(values) != num or not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ArgumentError(f"gains: is {shown(gains)}; pass {num} positive numbers, one for each weight matrix.")
    return values

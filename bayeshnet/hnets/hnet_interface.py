"""The interface of a network that produces the weights of another network.

A hypernetwork h maps an input, a condition or both to the weights w = h(x, e) of a target network (Ha et al. 2016,
https://arxiv.org/abs/1609.09106). It is a main network itself: its own weights may be kept or received.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.arguments import parse_cond_id
from bayeshnet.hnets.formats import TargetLayout, convert_format
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.own_lists import check_shapes, first_set, wrong
from bayeshnet.mnets.param_table import num_weights
from bayeshnet.mnets.reference_style import ReferenceHyperNet
from bayeshnet.typing import CondId, NestedWeights, Shapes, WeightsArg

__all__ = ["HyperNetInterface"]


class HyperNetInterface(ReferenceHyperNet, MainNetInterface):
    """What every hypernetwork offers beyond :class:`~bayeshnet.mnets.mnet_interface.MainNetInterface`.

    A plain mix-in: a hypernetwork is ``class MyHnet(nn.Module, HyperNetInterface)`` that sets ``_target_shapes``,
    ``_num_known_conds``, ``_internal_params`` and its table (``_records``, or, as a class written for the reference,
    ``_param_shapes`` and ``_unconditional_param_shapes_ref``: see :mod:`bayeshnet.mnets.reference_style`) and
    implements :meth:`forward` and :meth:`distillation_targets`. Deriving from
    :class:`~bayeshnet.hnets.base.HyperNet` instead gives the parsing and formatting of ``forward`` as well.

    Example:
        >>> import torch
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[10, 5], [10]], cond_in_size=3, num_cond_embs=2, layers=(4,))
        >>> hnet.num_outputs, hnet.num_known_conds, hnet.conditional_param_shapes
        (60, 2, [[3], [3]])
        >>> [tuple(w.shape) for w in hnet(cond_id=1)]
        [(10, 5), (10,)]
    """

    _target_shapes: Shapes
    _num_known_conds: int

    # ------------------------------------------------------------------ to be implemented

    @abstractmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - the API: a hypernetwork takes other inputs
        self,
        uncond_input: Tensor | None = None,
        cond_input: Tensor | None = None,
        cond_id: CondId | None = None,
        weights: WeightsArg | None = None,
        distilled_params: Any = None,
        condition: Any = None,
        ret_format: str = "squeezed",
    ) -> Tensor | NestedWeights:
        """Produce the weights of the target network.

        Args:
            uncond_input: Unconditional input ``[B, n]``, such as noise.
            cond_input: Conditional input ``[B, c]``, such as an embedding.
            cond_id: Index of a condition, or one per sample, whose conditional parameters are used; excludes
                ``cond_input``.
            weights: External weights: a list as long as ``param_shapes`` or ``hyper_shapes_learned``, or a dict with
                the complete lists ``"uncond_weights"`` and / or ``"cond_weights"``.
            distilled_params: Statistics made by ``distillation_targets``, if the class has any.
            condition: Selects condition-specific state, such as a set of batch-norm statistics.
            ret_format: ``"flattened"``, ``"sequential"``, ``"squeezed"`` or ``"stacked"``; see
                :mod:`bayeshnet.hnets.formats`.
        """

    # ------------------------------------------------------------------ what is produced

    @property
    def target_shapes(self) -> list[list[int]]:
        """Shapes of the weight tensors that are produced."""
        own = getattr(self, "_target_shapes", None)
        return check_shapes(self, "_target_shapes", own) if self._records is None else [list(s) for s in own or ()]

    @property
    def num_outputs(self) -> int:
        """Number of weights that are produced."""
        return num_weights(self.target_shapes)

    @property
    def num_known_conds(self) -> int:
        """Number of conditions that ``cond_id`` may select."""
        known = getattr(self, "_num_known_conds", None)
        if known is None:
            wrong(self, "_num_known_conds", "is not set", "set it to the number of conditions, 0 for none")
        return known

    # ------------------------------------------------------------------ conditional and unconditional parameters

    @property
    def unconditional_param_shapes(self) -> list[list[int]]:
        """Shapes of the parameters that all conditions share, internal or external."""
        shapes = self.param_shapes
        return [shapes[i] for i in self.unconditional_param_shapes_ref]

    @property
    def unconditional_param_shapes_ref(self) -> list[int]:
        """Indices of :attr:`unconditional_param_shapes` in ``param_shapes``."""
        if self._records is None and (own := first_set(self, "_unconditional_param_shapes_ref")) is not None:
            return own
        return _refs(self, conditional=False)

    @property
    def conditional_param_shapes(self) -> list[list[int]]:
        """Shapes of the parameters that belong to one condition each, internal or external."""
        shapes = self.param_shapes
        return [shapes[i] for i in self.conditional_param_shapes_ref]

    @property
    def conditional_param_shapes_ref(self) -> list[int]:
        """Indices of :attr:`conditional_param_shapes` in ``param_shapes``."""
        if self._records is None and (own := first_set(self, "_unconditional_param_shapes_ref")) is not None:
            return [i for i in range(len(self.param_shapes)) if i not in own]
        return _refs(self, conditional=True)

    @property
    def unconditional_params(self) -> list[nn.Parameter] | None:
        """The internal parameters that all conditions share; None if there are none."""
        return _internal_subset(self, self.unconditional_params_ref)

    @property
    def unconditional_params_ref(self) -> list[int] | None:
        """Indices of :attr:`unconditional_params` in ``internal_params``, or None."""
        return _internal_refs(self, conditional=False)

    @property
    def conditional_params(self) -> list[nn.Parameter] | None:
        """The internal parameters that belong to one condition each; None if there are none."""
        return _internal_subset(self, _internal_refs(self, conditional=True))

    # ------------------------------------------------------------------ helpers

    def _read_cond_ids(self, cond_id: Any, *, bounded: bool) -> list[int]:
        return list(parse_cond_id(cond_id, self.num_known_conds if bounded else None))

    def convert_out_format(self, hnet_out: Any, src_format: str, trgt_format: str) -> Tensor | NestedWeights:
        """Bring an output of :meth:`forward` from one ``ret_format`` to another.

        Args:
            hnet_out: Output in the format ``src_format``.
            src_format: ``"flattened"``, ``"sequential"``, ``"squeezed"`` or ``"stacked"``.
            trgt_format: The same choice.

        Raises:
            ArgumentError: If a format is unknown or the shapes are not those of the targets.
            ArgumentTypeError: If the output does not have the structure of ``src_format``.

        Example:
            >>> import torch
            >>> from bayeshnet.hnets import HMLP
            >>> hnet = HMLP([[2, 2], [2]], uncond_in_size=3, cond_in_size=0, layers=())
            >>> flat = hnet(torch.ones(4, 3), ret_format="flattened")
            >>> len(hnet.convert_out_format(flat, "flattened", "sequential"))
            4
        """
        return convert_format(hnet_out, TargetLayout.of(self.target_shapes), src_format, trgt_format)

    def add_to_uncond_params(self, dparams: Sequence[Tensor], params: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Sum perturbations and unconditional parameters, tensor by tensor.

        Args:
            dparams: The perturbations.
            params: What they are added to; :attr:`unconditional_params` by default.

        Raises:
            ArgumentError: If ``params`` is left out and there are no internal unconditional parameters, or if numbers
                or shapes differ.

        Example:
            >>> import torch
            >>> from bayeshnet.hnets import HMLP
            >>> hnet = HMLP([[2]], uncond_in_size=1, cond_in_size=0, layers=())
            >>> moved = hnet.add_to_uncond_params([torch.ones(2, 1), torch.ones(2)])
            >>> bool(torch.allclose(moved[0], hnet.unconditional_params[0] + 1))
            True
        """
        if params is None:
            params = self.unconditional_params
            if params is None:
                raise ArgumentError(
                    f"params: is None, but this {type(self).__name__} keeps no unconditional parameters to add to; "
                    "pass them."
                )
        if len(dparams) != len(params):
            raise ArgumentError(
                f"dparams: has {len(dparams)} tensors; pass one for each of the {len(params)} parameters."
            )
        for i, (delta, param) in enumerate(zip(dparams, params, strict=True)):
            if delta.shape != param.shape:
                raise ArgumentError(
                    f"dparams[{i}]: has shape {list(delta.shape)}; pass one of the parameter's, {list(param.shape)}."
                )
        return [param + delta for param, delta in zip(params, dparams, strict=True)]

    def get_task_embs(self) -> list[nn.Parameter] | None:
        """Deprecated: use :attr:`conditional_params`, which need not be embeddings of tasks."""
        warnings.warn(
            "get_task_embs() is deprecated; use the attribute `conditional_params`.", DeprecationWarning, stacklevel=2
        )
        return self.conditional_params

    def get_task_emb(self, task_id: int) -> nn.Parameter:
        """Deprecated: use an element of :attr:`conditional_params`.

        Args:
            task_id: Index into :attr:`conditional_params`.

        Raises:
            ArgumentError: If there is no such element.
        """
        warnings.warn(
            "get_task_emb() is deprecated; use an element of the attribute `conditional_params`.",
            DeprecationWarning,
            stacklevel=2,
        )
        if isinstance(task_id, bool) or not isinstance(task_id, int):
            raise ArgumentTypeError(f"task_id: is {kind_of(task_id)}; pass an int.")
        params = self.conditional_params
        num = 0 if params is None else len(params)
        if params is None or not 0 <= task_id < num:
            raise ArgumentError(
                f"task_id: is {task_id}; pass an index into the {num} conditional parameters that are kept."
            )
        return params[task_id]


def _refs(hnet: HyperNetInterface, *, conditional: bool) -> list[int]:
    return [i for i, record in enumerate(hnet.param_table) if record.conditional is conditional]


def _internal_refs(hnet: HyperNetInterface, *, conditional: bool) -> list[int] | None:
    own = first_set(hnet, "_unconditional_params_ref")
    if own is not None and not conditional:
        return list(own) or None
    if own is not None and first_set(hnet, "_param_shapes_meta") is None:
        return [i for i in range(len(hnet.internal_params or ())) if i not in own] or None
    meta = hnet.param_shapes_meta
    places = hnet.conditional_param_shapes_ref if conditional else hnet.unconditional_param_shapes_ref
    # In the order of the shapes, whatever that of the internal parameters: so are the lists that `forward` receives.
    return [meta[i]["index"] for i in places if meta[i]["index"] >= 0] or None


def _internal_subset(hnet: HyperNetInterface, refs: list[int] | None) -> list[nn.Parameter] | None:
    internal = hnet.internal_params
    if refs is None or internal is None:
        return None
    params = list(internal)
    return [params[i] for i in refs]

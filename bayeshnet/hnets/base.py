"""The base of the package's hypernetworks: ``forward`` is written here, once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, BayeshnetError, UsageError
from bayeshnet.hnets.arguments import HyperInputs, broadcast_size, check_input, parse_cond_id
from bayeshnet.hnets.failed_calls import input_error
from bayeshnet.hnets.formats import TargetLayout, check_ret_format, format_output
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan_gauss import gauss_hyperfan_init
from bayeshnet.hnets.weight_args import WeightLayout, merge_weights, missing_weights_error
from bayeshnet.layers.spectral_norm import SpectralNorm
from bayeshnet.layers.torch_modes import under_functorch
from bayeshnet.mnets.param_table import ParamRecord, number_conditions
from bayeshnet.typing import CondId, NestedWeights, Shapes, WeightsArg

__all__ = ["HyperNet"]


class HyperNet(nn.Module, HyperNetInterface):
    """A hypernetwork that implements one method: from checked inputs and complete weights to a flat output.

    A subclass calls :meth:`_describe` in its constructor and implements :meth:`_generate`. It reads its embeddings
    through :meth:`_conditional_rows`. What it does not do: check arguments, merge internal and external weights, cut
    the output.

    Example:
        >>> class Table(HyperNet):
        ...     '''Weights looked up, one row per condition.'''
        ...     def __init__(self, target_shapes, num_conds):
        ...         super().__init__()
        ...         layout = TargetLayout.of(target_shapes)
        ...         row = ParamRecord((layout.num_outputs,), "embedding", 0, conditional=True)
        ...         self._describe([row] * num_conds, target_shapes, num_known_conds=num_conds, uncond_in_size=0,
        ...                        cond_in_size=layout.num_outputs, embedding_refs=range(num_conds))
        ...         self._create_params()
        ...         self.custom_init()
        ...     def _generate(self, inputs, weights):
        ...         return self._conditional_rows(inputs, weights)
        >>> [tuple(w.shape) for w in Table([[2, 3], [2]], 4)(cond_id=[0, 3], ret_format="stacked")]
        [(2, 2, 3), (2, 2)]
    """

    _extra_weight_keys: tuple[str, ...] = ()
    """Keys of a dict passed as ``weights`` that the class reads itself, from ``HyperInputs.extra``."""

    def __init__(self) -> None:
        super().__init__()
        self._layout: WeightLayout
        self._targets: TargetLayout
        self._uncond_in_size: int | None
        self._cond_in_size: int | None
        self._embedding_refs: tuple[int, ...]
        self._spectral_norms: nn.ModuleDict | None = None

    # ------------------------------------------------------------------ for subclasses

    def _describe(
        self,
        records: Sequence[ParamRecord],
        target_shapes: Shapes,
        *,
        num_known_conds: int = 0,
        uncond_in_size: int | None = None,
        cond_in_size: int | None = None,
        embedding_refs: Sequence[int] = (),
    ) -> None:
        """Say what the network has and makes; to be called once, at construction.

        Args:
            records: The parameter table.
            target_shapes: What is produced.
            num_known_conds: Number of conditions.
            uncond_in_size: Size of the unconditional input; None if the class checks it itself.
            cond_in_size: Size of the conditional input; None if the class checks it itself.
            embedding_refs: Table index of the conditional input of each condition.
        """
        self._records = number_conditions(records, num_known_conds)
        self._layout = WeightLayout.of(self._records)
        self._targets = TargetLayout.of(target_shapes)
        self._target_shapes = self._targets.shapes
        self._num_known_conds = num_known_conds
        self._uncond_in_size = uncond_in_size
        self._cond_in_size = cond_in_size
        self._embedding_refs = tuple(embedding_refs)

    def _create_params(self) -> None:
        """Register an uninitialised parameter for each internal record, in table order."""
        shapes = [self._layout.shapes[ref] for ref in self._layout.internal]
        self._internal_params = (
            nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in shapes]) if shapes else None
        )

    def _normalise(self, refs: Sequence[int], transposed: Sequence[bool] | None = None) -> None:
        """Divide the weights at these places of the table by their spectral norms, in :meth:`_kernel`.

        Args:
            refs: Table indices of matrices and kernels.
            transposed: Which of them are kernels of transposed convolutions.
        """
        flags = [False] * len(refs) if transposed is None else transposed
        shapes = self._layout.shapes
        self._spectral_norms = nn.ModuleDict(
            {str(i): SpectralNorm([shapes[i]], transposed=flag) for i, flag in zip(refs, flags, strict=True)}
        )

    def _kernel(self, weights: Sequence[Tensor], ref: int, *, update: bool = True) -> Tensor:
        """The weight at this place of the table, divided by its spectral norm if :meth:`_normalise` says so.

        ``update=False`` leaves the power iteration where the last ``forward`` brought it.
        """
        weight = weights[ref]
        if self._spectral_norms is None:
            return weight
        norm = cast("SpectralNorm", self._spectral_norms[str(ref)])
        return norm.normalize([weight], update=update and self.training and self._is_own(weight))[0]

    def _is_own(self, weight: Tensor) -> bool:
        """Whether a power iteration may follow this tensor: a parameter of the network, and buffers can be written."""
        if under_functorch():
            return False
        # torch.func.functional_call puts plain tensors in the place of parameters.
        return isinstance(weight, nn.Parameter) and any(weight is param for param in self._internal_list())

    @abstractmethod
    def _generate(self, inputs: HyperInputs, weights: list[Tensor]) -> Tensor | list[Tensor]:
        """Compute the output.

        Args:
            inputs: The checked arguments.
            weights: One tensor per record of the table. Conditional ones that the network does not keep are None
                if none were given and no ``cond_id`` was.

        Returns:
            The flat output ``[B, num_outputs]``, or one tensor ``[B, *shape]`` per target where that is what there is.
        """

    def _read_extra(self, extra: Mapping[str, Any]) -> dict[str, int]:
        """Check what was passed under ``_extra_weight_keys`` and give the batch size of each, by its name."""
        return {}

    def _conditional_rows(self, inputs: HyperInputs, weights: Sequence[Tensor]) -> Tensor | None:
        """The conditional input ``[B or 1, c]``: the one passed, or the embeddings of the conditions asked for."""
        if inputs.cond_id is None or not self._embedding_refs:
            return inputs.cond_input
        if len(inputs.cond_id) == 1:
            return weights[self._embedding_refs[inputs.cond_id[0]]].unsqueeze(0)
        return torch.stack([weights[self._embedding_refs[i]] for i in inputs.cond_id])

    def _parse_cond_id(self, cond_id: CondId) -> tuple[int, ...]:
        return parse_cond_id(cond_id, self._num_known_conds)

    # ------------------------------------------------------------------ forward

    @property
    def uncond_in_size(self) -> int | None:
        """Size of the unconditional input; None if it is not known."""
        return self._uncond_in_size

    @property
    def cond_in_size(self) -> int | None:
        """Size of the conditional input; None if it is not known."""
        return self._cond_in_size

    @property
    def num_outputs(self) -> int:
        """Number of weights that are produced."""
        return self._targets.num_outputs

    def get_cond_in_emb(self, cond_id: int) -> nn.Parameter:
        """Return the embedding ``[cond_in_size]`` that is the conditional input of a condition.

        Args:
            cond_id: From 0 to ``num_known_conds - 1``.

        Raises:
            ArgumentError: If there is no such condition.
            UsageError: If the network does not keep it.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> HMLP([[10, 5]], cond_in_size=3, num_cond_embs=4).get_cond_in_emb(2).shape
            torch.Size([3])
        """
        ids = self._parse_cond_id(cond_id)
        if len(ids) != 1:
            raise ArgumentError(f"cond_id: has {len(ids)} conditions; pass one.")
        if not self._embedding_refs:
            raise UsageError(
                f"get_cond_in_emb: {type(self).__name__} has no conditional input of its own (cond_in_size is 0, or it "
                "is that of the networks inside: `internal_hnet`, `internal_hnets`)."
            )
        ref = self._embedding_refs[ids[0]]
        if ref not in self._layout.internal:
            raise UsageError("get_cond_in_emb: with no_cond_weights=True the embeddings are kept by the caller.")
        return cast("nn.Parameter", self._internal_list()[self._layout.internal.index(ref)])

    def distillation_targets(self) -> list[Tensor] | None:
        """Return None: there are no statistics to be learned after training.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> HMLP([[10, 5]]).distillation_targets() is None
            True
        """
        return None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - nn.Module declares it as Callable[..., Any]
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
            cond_id: A condition, or one per sample (int, list of ints, integer array or tensor ``[B]``), whose
                internal or external embedding is used; excludes ``cond_input``. A batch of 1 on one side serves all
                samples of the other.
            weights: External weights: a list as long as ``param_shapes`` or ``hyper_shapes_learned``, or a dict with
                the complete lists ``"uncond_weights"`` and / or ``"cond_weights"`` (some classes read further keys).
                Never modified.
            distilled_params: Not used unless the class says so.
            condition: Selects the batch-norm statistics, where there are any.
            ret_format: ``"flattened"`` ``[B, num_outputs]``, ``"sequential"`` (B lists of tensors), ``"squeezed"``
                (the list itself if B is 1) or ``"stacked"`` (one list of ``[B, *shape]``).

        Raises:
            ArgumentError: If a shape, an id, a format or the set of arguments is not accepted, or weights are missing.
            ArgumentTypeError: If an argument has a type that is not accepted.

        Example:
            >>> from bayeshnet.hnets import HMLP
            >>> hnet = HMLP([[10, 5], [10]], uncond_in_size=2, cond_in_size=3, num_cond_embs=4, layers=(8,))
            >>> hnet(torch.randn(1, 2), cond_id=[0, 1, 3], ret_format="flattened").shape
            torch.Size([3, 60])
        """
        check_ret_format(ret_format)
        inputs = self._read_inputs(
            uncond_input=uncond_input,
            cond_input=cond_input,
            cond_id=cond_id,
            weights=weights,
            distilled_params=distilled_params,
            condition=condition,
        )
        merged = self._read_weights(inputs)
        try:
            out = self._generate(inputs, merged)
        except (BayeshnetError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:  # only then is there a look at dtypes
            given = {"uncond_input": inputs.uncond_input, "cond_input": inputs.cond_input}
            better = input_error(given, merged)
            if better is None:
                raise
            raise better from error
        return format_output(out, self._targets, ret_format)

    apply_gauss_hyperfan_init = gauss_hyperfan_init

    def _read_inputs(
        self,
        *,
        uncond_input: Tensor | None,
        cond_input: Tensor | None,
        cond_id: CondId | None,
        weights: WeightsArg | None,
        distilled_params: Any,
        condition: Any,
    ) -> HyperInputs:
        """Check the arguments and find the batch size."""
        extra: dict[str, Any] = {}
        if self._extra_weight_keys and isinstance(weights, Mapping):
            extra = {key: weights[key] for key in self._extra_weight_keys if key in weights}
        ids = self._check_conditional_args(cond_input, cond_id, extra)
        sizes = self._read_extra(extra)
        if uncond_input is not None:
            check_input("uncond_input", uncond_input, self._uncond_in_size)
            sizes["uncond_input"] = uncond_input.shape[0]
        elif self._uncond_in_size:
            raise ArgumentError(f"uncond_input: is required; pass a tensor [batch, {self._uncond_in_size}].")
        if cond_input is not None:
            check_input("cond_input", cond_input, self._cond_in_size)
            sizes["cond_input"] = cond_input.shape[0]
        elif ids is not None:
            sizes["cond_id"] = len(ids)
        batch_size = broadcast_size(sizes)
        return HyperInputs(
            uncond_input, cond_input, ids, batch_size, weights, distilled_params, condition, cond_id, extra
        )

    def _check_conditional_args(
        self, cond_input: Tensor | None, cond_id: CondId | None, extra: Mapping[str, Any]
    ) -> tuple[int, ...] | None:
        """Check that the condition is given, once, and return it if it is an id."""
        if cond_id is not None:
            if cond_input is not None:
                raise ArgumentError("cond_id: excludes cond_input; pass one of the two.")
            return self._parse_cond_id(cond_id)
        if cond_input is None and self._cond_in_size:
            how = f"cond_id (0..{self._num_known_conds - 1}) or " if self._num_known_conds else ""
            raise ArgumentError(
                f"cond_input: a condition is required; pass {how}cond_input, a tensor [batch, {self._cond_in_size}]."
            )
        return None

    def _read_weights(self, inputs: HyperInputs) -> list[Tensor]:
        """One tensor per record: external ones where given, internal ones otherwise."""
        layout = self._layout
        merged = merge_weights(inputs.weights, self._internal_list(), layout, self._extra_weight_keys)
        if layout.external:
            # Conditional weights are needed where a condition is picked from them, not where its input is passed.
            picks = inputs.cond_id is not None
            missing = [i for i in layout.external if merged[i] is None and (picks or not layout.records[i].conditional)]
            if missing:
                raise missing_weights_error(layout, missing)
        return cast("list[Tensor]", merged)

    def _internal_list(self) -> list[Tensor]:
        internal = self.internal_params
        if internal is None:
            return []
        # nn.ParameterList looks each entry up by name; reading its dict is ten times faster.
        params = list(internal.__dict__["_parameters"].values())
        return params if len(params) == len(internal) else list(internal)

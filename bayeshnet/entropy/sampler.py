"""What the estimators of log q need to know of a sampler: its draws, and the Jacobian of its generator.

A sampler is a hypernetwork h with perturbation noise, the distribution of

* ``w = h(z[:n]) + sigma * z``, z in R^D (shared noise), or
* ``w = h(z) + sigma * e``, z in R^n, e in R^D (independent noise),

with standard normal z and e, n << D. Where h is linear in its last layer, h(z) = W phi(z) + b, derivatives are taken of
the small features phi only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.entropy.path_gradient import PathGradient
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.hnets.jacobian import row_jacobian
from bayeshnet.hnets.linear_head import LinearHeadHyperNet
from bayeshnet.hnets.row_maps import require_row_map
from bayeshnet.layers.module_versions import places_of
from bayeshnet.layers.plain_modules import has_own_hooks
from bayeshnet.typing import FeatureBatch, Jacobians, LogDensities, NoiseBatch, WeightBatch, Weights

__all__ = ["Draw", "NoisySampler"]


@dataclass(frozen=True, slots=True)
class Draw:
    """Samples and what made them.

    Attributes:
        weights: The samples ``[S, D]``.
        z: Input of the generator ``[S, n]``.
        noise: Standard normal perturbation ``[S, D]``; for shared noise its first n columns are ``z``.
        log_det: Sign and logarithm ``[S]`` of the determinant of the map from noise to weights, if it is known already.

    Example:
        >>> Draw(torch.zeros(5, 3), z=torch.zeros(5, 2), noise=torch.zeros(5, 3)).weights.shape
        torch.Size([5, 3])
    """

    weights: WeightBatch
    z: NoiseBatch
    noise: WeightBatch
    log_det: tuple[LogDensities, LogDensities] | None = None


class NoisySampler:
    """The sampling side of a perturbed hypernetwork, for one condition.

    Args:
        hnet: A perturbation wrapper with its default handlers, around any hypernetwork.
        cond_id: The condition, for a conditional hypernetwork that keeps its conditions.
        cond_input: The conditional input ``[E]`` or ``[1, E]`` instead.

    Raises:
        ArgumentTypeError: If ``hnet`` is not a perturbation wrapper.
        ArgumentError: If both ``cond_id`` and ``cond_input`` are given, or the wrapper has handlers, hooks or a forward
            of its own.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> sampler = NoisySampler(HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0)))
        >>> draw = sampler.draw(5)
        >>> draw.weights.shape, sampler.jacobian(draw.z).shape
        (torch.Size([5, 3]), torch.Size([5, 2, 3]))
    """

    def __init__(
        self, hnet: HyperNetInterface, *, cond_id: int | None = None, cond_input: Tensor | None = None
    ) -> None:
        if not isinstance(hnet, HPerturbWrapper):
            raise ArgumentTypeError(
                f"hnet: is {kind_of(hnet)}, whose outputs fill only a surface in weight space and have no "
                "density; wrap it: HPerturbWrapper(hnet, learn_sigma='per_weight')."
            )
        if hnet.input_handler is not None or hnet.output_handler is not None:
            raise ArgumentError(
                "hnet: the wrapper has an input_handler or output_handler, so how noise becomes weights is unknown; "
                "use noise='shared' or noise='independent' instead of handlers."
            )
        if cond_id is not None and cond_input is not None:
            raise ArgumentError("cond_id, cond_input: both are given; pass one of them.")
        if hnet.log_sigma_noise is None and not bool(hnet.sigma > 0):
            raise ArgumentError(
                "hnet: its sigma_noise is 0, so that its weights have no density; pass a positive sigma_noise."
            )
        self.hnet = hnet
        self.cond_id = cond_id
        self.cond_input = cond_input if cond_input is None or cond_input.dim() == 2 else cond_input.reshape(1, -1)
        self.shared = hnet.noise == "shared"
        self.generator: HyperNetInterface = hnet.internal_hnet
        """The hypernetwork h inside the wrapper."""
        self.checked_by: object = None
        """The estimator that was last found to apply to the sampler."""
        self.path_gradient: PathGradient | None = None
        """Set by whoever uses the expectation of a loss in which log q enters linearly, such as a guide's ELBO."""
        self.event_dim = hnet.num_outputs
        self.latent_dim = hnet.hnet_uncond_in_size or 0
        self._density_checked = False
        self.places = places_of(hnet)
        """Where the hypernetwork keeps its parameters; see :mod:`bayeshnet.layers.module_versions`."""
        self._check_wrapper()
        self._may_have_head = self.generator if isinstance(self.generator, LinearHeadHyperNet) else None

    def _check_wrapper(self) -> None:
        """Raise if a call of the wrapper does more than add noise; checked at every draw."""
        hnet = self.hnet
        replaced = "forward" in hnet.__dict__ or type(hnet).forward is not HPerturbWrapper.forward
        if replaced or has_own_hooks(hnet):
            raise ArgumentError(
                f"hnet: the wrapper has {'a forward of its own' if replaced else 'hooks'}, so how noise becomes "
                "weights is unknown; put it on the wrapped hypernetwork (`internal_hnet`), whose calls may do anything."
            )

    @property
    def linear_head(self) -> LinearHeadHyperNet | None:
        """The generator if it is linear in its last layer, else None; with hooks it counts as not linear."""
        head = self._may_have_head
        return head if head is not None and head.has_linear_head else None

    @property
    def sigma(self) -> Weights:
        """Standard deviations of the perturbation ``[D]``."""
        return self.hnet.sigma.expand(self.event_dim)

    def log_sigma(self, count: int | None = None) -> Weights:
        """Logarithm of the first ``count`` standard deviations, of all by default."""
        learned = self.hnet.log_sigma_noise
        log_sigma = self.hnet.sigma.log() if learned is None else learned
        return log_sigma.expand(self.event_dim)[:count]

    def parameters(self) -> list[Tensor]:
        """The parameters of the hypernetwork, and the conditional input if one was given."""
        params: list[Tensor] = list(self.hnet.parameters())
        return params if self.cond_input is None else [*params, self.cond_input]

    # ------------------------------------------------------------------ sampling

    def generate(self, z: NoiseBatch) -> WeightBatch:
        """``h(z)`` for inputs ``[S, n]``: ``[S, D]``."""
        condition = self._condition()
        uncond = z if self.latent_dim else None
        out = cast("Tensor", cast("Any", self.generator)(uncond_input=uncond, ret_format="flattened", **condition))
        # Without noise inputs there is one row for all samples.
        return out if out.shape[0] == z.shape[0] else out.expand(z.shape[0], -1)

    def draw(self, num: int) -> Draw:
        """Draw ``num`` independent samples."""
        self._check_wrapper()
        base = self.hnet.draw_noise(num)
        z = base[:, : self.latent_dim]
        noise = base if self.shared else base[:, self.latent_dim :]
        return self.place(z, noise)

    def place(self, z: NoiseBatch, noise: WeightBatch) -> Draw:
        """Make the samples of given noise: ``z [S, n]``, ``noise [S, D]``."""
        return Draw(torch.addcmul(self.generate(z), self.hnet.sigma, noise), z, noise)

    def _condition(self) -> dict[str, Any]:
        if self.cond_id is not None:
            return {"cond_id": self.cond_id}
        return {} if self.cond_input is None else {"cond_input": self.cond_input}

    # ------------------------------------------------------------------ derivatives

    def check_density(self) -> None:
        """Raise unless each sample is a function of its own noise alone.

        Raises:
            DensityError: If the hypernetwork has batch norm or dropout.
        """
        if self._density_checked or not isinstance(self.generator, nn.Module):
            return
        require_row_map(
            self.generator,
            "so that a sample depends on more than its own noise and has no density",
            otherwise=", or use it only for sampling",
        )
        self._density_checked = True  # modules do not change; this is called at every step

    def features(self, z: NoiseBatch) -> FeatureBatch:
        """The generator's features phi(z) ``[S, q]``, if it has a linear head."""
        if self.linear_head is None:
            raise DensityError("hnet: the generator has no linear head; its features have no meaning.")
        return self.linear_head.features(uncond_input=z, **self._condition())

    def feature_jacobian(self, z: NoiseBatch) -> Jacobians:
        """Derivatives of the features, ``J[s, i, :] = d phi(z_s) / d z_i``: ``[S, n, q]``."""
        head = self.linear_head
        if head is None:
            raise DensityError("hnet: the generator has no linear head; its features have no meaning.")
        return head.feature_jacobian(uncond_input=z, **self._condition())

    def jacobian(self, z: NoiseBatch, rows: int | None = None) -> Jacobians:
        """Derivatives of the first ``rows`` (all) weights, ``J[s, i, j] = d h_j(z_s) / d z_i``: ``[S, n, rows]``."""
        head = self.linear_head
        if head is None:
            return row_jacobian(self.generate, z)[..., :rows]
        weight, _ = head.head(rows=rows)
        return self.feature_jacobian(z) @ weight.T


def require_values(sampler: NoisySampler, weights: WeightBatch) -> None:
    """Raise unless a density can be computed at these weights ``[S, D]``.

    Raises:
        ArgumentError: If their dtype is not the sampler's, or one is NaN or infinite.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> sampler = NoisySampler(HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0)))
        >>> require_values(sampler, torch.tensor([[0.0, 1.0, torch.nan]]))
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: value: 1 of 1 weight vectors have entries that are NaN or infinite, the first \
is number 0; pass finite values.
    """
    if weights.dtype != sampler.sigma.dtype:
        wanted = str(sampler.sigma.dtype).removeprefix("torch.")
        raise ArgumentError(
            f"value: has dtype {str(weights.dtype).removeprefix('torch.')}, the hypernetwork {wanted}; pass "
            f"value.to(torch.{wanted})."
        )
    bad = ~torch.isfinite(weights).all(-1)
    if bool(bad.any()):
        raise ArgumentError(
            f"value: {int(bad.sum())} of {bad.numel()} weight vectors have entries that are NaN or infinite, the first "
            f"is number {int(bad.nonzero()[0])}; pass finite values."
        )


def percent(share: float) -> str:
    """Format a share to one digit: a warning whose text changes at every step would be shown at every step.

    Example:
        >>> percent(0.1234), percent(1 / 3000)
        ('10 %', '0.03 %')
    """
    return f"{float(f'{100.0 * share:.0e}'):g} %"


def chunks(total: int, size: int) -> Sequence[slice]:
    """Cut ``range(total)`` into slices of at most ``size``.

    Example:
        >>> chunks(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]

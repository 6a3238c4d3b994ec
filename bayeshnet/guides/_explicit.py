"""The base of guides whose hypernetwork outputs the parameters of an explicit distribution, and takes no noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_flag
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families.hypernet import HnetOrBuilder
from bayeshnet.guides._by_size import counted, is_large
from bayeshnet.guides.base import Guide
from bayeshnet.hnets.chunked_mlp_hnet import ChunkedHMLP
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.hnets.row_maps import require_row_map
from bayeshnet.mnets.param_table import num_weights
from bayeshnet.sites.prior import prior_start
from bayeshnet.typing import Shapes

__all__ = ["ExplicitHypernet", "default_explicit_hnet"]


def default_explicit_hnet(target_shapes: Shapes, *, copies: int = 1) -> HyperNetInterface:
    """Build the default hypernetwork of an explicit guide, with one learned embedding as its input.

    A small MLP with 17 parameters for each output; for more than 100,000 latents a chunked one, whose number of
    parameters grows with the square root of the number of outputs.

    Args:
        target_shapes: Shapes of the tensors it generates.
        copies: Number of outputs for each latent.

    Example:
        >>> default_explicit_hnet([[4, 3], [4]]).num_outputs
        16
    """
    shapes = [list(shape) for shape in target_shapes]
    size = num_weights(shapes)
    if not is_large(size // copies):
        return HMLP(shapes, layers=(16,), activation_fn=nn.Tanh(), verbose=False)
    # The head has 64 weights an output and a chunk has 32 numbers of its own: the sum is least at this size.
    chunk_size = math.ceil(math.sqrt(size * 32 / 64))
    return ChunkedHMLP(shapes, chunk_size, 32, True, cond_in_size=0, layers=(64,), verbose=False)


class ExplicitHypernet(Guide):
    """Base of guides that call a hypernetwork without noise, once for all draws.

    A subclass calls :meth:`build` in its constructor, and builds its distribution from :meth:`outputs`.

    Example:
        >>> import pyro.distributions as dist, pyro
        >>> class Point(ExplicitHypernet):
        ...     def __init__(self, model, *, example):
        ...         super().__init__(model, example=example)
        ...         options = dict(hnet=None, cond_id=None, copies=1, whiten=True, init_loc_fn=None)
        ...         self.build(model, example=example, **options)
        ...     def get_posterior(self, *args, **kwargs):
        ...         return dist.Delta(self.loc + self.scale * self.outputs()[0], event_dim=1)
        ...     def move_to(self, mean, std=None, draws=None):
        ...         self.loc.copy_(mean)
        >>> guide = Point(lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1)), example=())
        >>> guide()["z"].shape
        torch.Size([3])
    """

    def build(
        self,
        model: Callable[..., Any],
        *,
        example: Any,
        hnet: HnetOrBuilder | None,
        cond_id: int | None,
        copies: int,
        whiten: bool,
        init_loc_fn: Callable[..., Any] | None,
    ) -> Tensor:
        """Build buffers and hypernetwork.

        Args:
            model: The Pyro model.
            example: Its arguments.
            hnet: A hypernetwork, used as it is, or a function from target shapes to one; a small MLP by default.
            cond_id: The condition of a conditional hypernetwork; may be omitted if there is only one.
            copies: How often the shapes of the latents are repeated in the target shapes.
            whiten: Use the prior's spread as the scale; otherwise 1.
            init_loc_fn: Where the location comes from; the prior's centre if None.

        Returns:
            A start ``[D]`` of the whitened location: 0, but N(0, 1) where the prior is a Normal and no start was given.

        Raises:
            ArgumentError: If the hypernetwork takes noise, does not fit the target shapes, or lacks the condition.
            ArgumentTypeError: If ``hnet`` is not a hypernetwork.
            DensityError: If it has batch norm or dropout.
        """
        require_flag("whiten", whiten)
        prior = prior_start(model, self.sites, self.loc, *self.example_arguments())
        loc = prior.loc if init_loc_fn is None else self.loc
        self.loc, self.scale = loc, prior.scale if whiten else torch.ones_like(prior.scale)
        # Added to what the hypernetwork outputs, so that a chunked one, too, starts where it should.
        self.register_buffer("offset", loc.new_zeros(copies, self.latent_dim))
        self.offset: Tensor
        self._chosen = hnet is None and is_large(self.latent_dim)
        made = _make_hnet(hnet, self.target_shapes * copies, copies).to(dtype=loc.dtype, device=loc.device)
        # Registered past PyroModule, which would put the parameters into Pyro's global store at every access.
        self._modules["hnet"] = made
        self._cond_id = _check_cond_id(self.hnet, cond_id)
        return torch.randn_like(loc) * prior.gaussian if init_loc_fn is None else torch.zeros_like(loc)

    # ------------------------------------------------------------------ what there is

    @property
    def hnet(self) -> Any:
        """The hypernetwork."""
        return self._modules["hnet"]

    @property
    def cond_id(self) -> int | None:
        """The condition; None if the hypernetwork has none. It may be set to another one.

        Raises:
            ArgumentError: On setting, if there is no such condition.
        """
        return self._cond_id

    @cond_id.setter
    def cond_id(self, cond_id: int) -> None:
        self._cond_id = _check_cond_id(self.hnet, cond_id)

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        return {**super().configuration(), "cond_id": self._cond_id}

    def facts(self) -> Mapping[str, Any]:
        """The hypernetwork."""
        return {"hnet": self.hnet}

    def not_compared(self) -> tuple[str, ...]:
        """Where it starts, and what made the hypernetwork, which is compared itself."""
        return ("hnet", "whiten", "init_scale", "mean_var", "rho_var")

    def learned_modules(self) -> dict[str, nn.Module]:
        """Return the hypernetwork."""
        return {"hnet": self.hnet}

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return parameter groups: those that act on one output each, at ``lr``, and the others, at 0.3 ``lr``."""
        direct = getattr(self.hnet, "direct_params", None)
        known = {id(param) for param in (() if direct is None else direct())}
        fast = [param for param in self.parameters() if id(param) in known]
        slow = [param for param in self.parameters() if id(param) not in known]
        return [{"params": fast, "lr": lr}, {"params": slow, "lr": 0.3 * lr}]

    def outputs(self) -> Tensor:
        """Return the outputs of the hypernetwork for the condition plus the offset, whitened: ``[copies, D]``."""
        out = self.hnet(cond_id=self._cond_id, ret_format="flattened")
        return out.reshape(self.offset.shape) + self.offset

    def choices(self) -> list[str]:
        """See the base class."""
        return [f"hnet={type(self.hnet).__name__} ({self._why()})"] if self._chosen else []

    def _why(self) -> str:
        return f"{counted(self.latent_dim)} latents: more than 100,000, so that it is chunked"

    def __repr__(self) -> str:
        why = f" ({self._why()})" if self._chosen else ""
        kind = f"hnet={type(self.hnet).__name__}{why}"
        parts = [f"latent_dim={self.latent_dim}", f"sites={len(self.sites)}", kind]
        if self.hnet.num_known_conds > 1:
            parts.append(f"cond_id={self._cond_id}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _make_hnet(hnet: HnetOrBuilder | None, shapes: list[list[int]], copies: int) -> nn.Module:
    if hnet is None:
        made: Any = default_explicit_hnet(shapes, copies=copies)
    elif isinstance(hnet, HyperNetInterface):
        made = hnet
    elif callable(hnet) and not isinstance(hnet, nn.Module):
        made = hnet(shapes)
    else:
        made = hnet
    if not isinstance(made, HyperNetInterface) or not isinstance(made, nn.Module):
        returned = "returned" if made is not hnet else "is"
        raise ArgumentTypeError(
            f"hnet: {returned} {kind_of(made)}; pass a hypernetwork (an nn.Module with HyperNetInterface), or "
            "a function from target shapes to one."
        )
    if made.num_outputs != num_weights(shapes):
        raise ArgumentError(
            f"hnet: produces {made.num_outputs} numbers, but {num_weights(shapes)} are needed; build it from the "
            f"target shapes {shapes}."
        )
    if isinstance(made, HPerturbWrapper) or getattr(made, "uncond_in_size", 0):
        raise ArgumentError(
            "hnet: takes noise as its unconditional input, so the weights it makes are random; this guide needs a "
            "function of the condition alone. Build it with uncond_in_size=0 and cond_in_size > 0 and without a "
            "perturbation wrapper, or use AutoHypernet."
        )
    require_row_map(made, "so that what it makes is no function of the condition alone")
    return made


def _check_cond_id(hnet: HyperNetInterface, cond_id: int | None) -> int | None:
    num = hnet.num_known_conds
    if cond_id is None and num <= 1:
        return 0 if num else None
    if isinstance(cond_id, bool) or not isinstance(cond_id, int) or not 0 <= cond_id < num:
        accepted = f"a number from 0 to {num - 1}" if num else "None: the hypernetwork has no conditions"
        raise ArgumentError(f"cond_id: is {cond_id!r}; pass {accepted}.")
    return cond_id

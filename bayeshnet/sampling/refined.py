"""Draws of chains that started from a guide."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bayeshnet.errors import CheckpointError

__all__ = ["Refined"]

_FORMAT = "bayeshnet.Refined 1"


class Refined(Mapping[str, Tensor]):
    """Draws ``[S, *shape]`` by site, chain after chain, with what is known of the chains.

    It is a mapping, which :func:`~bayeshnet.predict` and whatever else takes draws accepts in the place of a guide.

    Args:
        draws: Draws ``[C * N, *shape]`` by site: N of each chain, chain after chain.
        num_chains: Number C of chains.
        diagnostics: What :func:`~bayeshnet.refine` found, see there.

    Attributes:
        num_chains: Number of chains.
        diagnostics: Numbers by name.

    Example:
        >>> import torch
        >>> refined = Refined({"mu": torch.zeros(6, 2)}, num_chains=3, diagnostics={"rhat": 1.0})
        >>> refined["mu"].shape, refined.by_chain()["mu"].shape
        (torch.Size([6, 2]), torch.Size([3, 2, 2]))
    """

    def __init__(self, draws: Mapping[str, Tensor], *, num_chains: int, diagnostics: Mapping[str, float]) -> None:
        self._draws, self.num_chains, self.diagnostics = dict(draws), num_chains, dict(diagnostics)

    def __getitem__(self, name: str) -> Tensor:
        return self._draws[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._draws)

    def __len__(self) -> int:
        return len(self._draws)

    def __repr__(self) -> str:
        num = len(next(iter(self._draws.values())))
        found = ", ".join(f"{name}={value:.4g}" for name, value in self.diagnostics.items())
        return f"Refined({num} draws of {self.num_chains} chains, sites={list(self._draws)}, {found})"

    @property
    def converged(self) -> bool:
        """Whether nested R-hat came below the bound that was asked for."""
        return bool(self.diagnostics.get("converged", 0.0))

    def by_chain(self) -> dict[str, Tensor]:
        """Return the draws as ``[C, N, *shape]``, the form of ``az.from_dict`` and of Pyro's diagnostics."""
        return {name: value.unflatten(0, (self.num_chains, -1)) for name, value in self._draws.items()}

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write draws and diagnostics into one safetensors file, whole or not at all.

        Example:
            >>> import os, tempfile, torch
            >>> refined = Refined({"mu": torch.zeros(6)}, num_chains=3, diagnostics={"rhat": 1.0})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     refined.save(os.path.join(folder, "draws.safetensors"))
            ...     Refined.load(os.path.join(folder, "draws.safetensors"))
            Refined(6 draws of 3 chains, sites=['mu'], rhat=1)
        """
        about = {"num_chains": self.num_chains, "diagnostics": self.diagnostics, "sites": list(self._draws)}
        metadata = {"format": _FORMAT, "about": json.dumps(about)}
        place = Path(path)
        beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self._draws.items()}
        try:
            safetensors.torch.save_file(tensors, str(beside), metadata)
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Refined:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: If it is another file, or is damaged.
            FileNotFoundError: If there is none.
        """
        place = Path(path)
        if not place.is_file():
            raise FileNotFoundError(f"path: there is no file {place}.")
        opened: Any = safetensors.safe_open
        try:
            with opened(str(place), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"path: {place} is damaged or no safetensors file ({error}).") from None
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"path: {place} has no draws written by Refined.save.")
        about: dict[str, Any] = json.loads(metadata["about"])
        draws = {name: tensors[name] for name in about["sites"]}
        return cls(draws, num_chains=about["num_chains"], diagnostics=about["diagnostics"])

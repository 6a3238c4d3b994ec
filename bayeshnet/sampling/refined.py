"""Draws of chains that started from a guide."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError
from bayeshnet.training.files import read_file, write_file

__all__ = ["Refined"]

_FORMAT = 1


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

    Raises:
        ArgumentError: If there are no draws, or not as many of each site and chain.
        ArgumentTypeError: If draws are no tensors, or ``num_chains`` is not an integer.

    Example:
        >>> import torch
        >>> refined = Refined({"mu": torch.zeros(6, 2)}, num_chains=3, diagnostics={"rhat": 1.0})
        >>> refined["mu"].shape, refined.by_chain()["mu"].shape
        (torch.Size([6, 2]), torch.Size([3, 2, 2]))
    """

    def __init__(self, draws: Mapping[str, Tensor], *, num_chains: int, diagnostics: Mapping[str, float]) -> None:
        require_count("num_chains", num_chains)
        for name, value in draws.items():
            if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - what a user gives
                raise ArgumentTypeError(f"draws: gives {kind_of(value)} for {name!r}; pass a tensor [S, *shape].")
        numbers = {name: len(value) if value.dim() else 0 for name, value in draws.items()}
        if len({*numbers.values()}) != 1 or not min(numbers.values()) or min(numbers.values()) % num_chains:
            raise ArgumentError(
                f"draws: are {numbers} by site, of num_chains={num_chains}; pass as many draws of each site, and as "
                "many of each chain."
            )
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
        """Write draws and diagnostics into one checksummed safetensors file, whole or not at all.

        Args:
            path: The file; its folder has to be there.

        Raises:
            OSError: If it cannot be written; the message says what to do.

        Example:
            >>> import os, tempfile, torch
            >>> refined = Refined({"mu": torch.zeros(6)}, num_chains=3, diagnostics={"rhat": 1.0})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     refined.save(os.path.join(folder, "draws.safetensors"))
            ...     Refined.load(os.path.join(folder, "draws.safetensors"))
            Refined(6 draws of 3 chains, sites=['mu'], rhat=1)
        """
        # JSON has no numbers that are not finite, which r-hat of chains that stand still is.
        found = {name: repr(value) for name, value in self.diagnostics.items()}
        about = {"refined": _FORMAT, "num_chains": self.num_chains, "diagnostics": found, "sites": list(self._draws)}
        write_file(Path(path), {name: value.detach() for name, value in self._draws.items()}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Refined:
        """Read what :meth:`save` wrote, onto the CPU.

        Args:
            path: The file.

        Raises:
            CheckpointError: If a bit differs from what was written, or it is another file.
            OSError: If there is none, or it cannot be read.
        """
        tensors, about = read_file(Path(path))
        if about.get("refined") != _FORMAT:
            raise CheckpointError(
                f"path: {path} has no draws written by Refined.save of this version; a model or guide is read by load."
            )
        found = {name: float(value) for name, value in about["diagnostics"].items()}
        draws = {name: tensors[name] for name in about["sites"]}
        return cls(draws, num_chains=about["num_chains"], diagnostics=found)

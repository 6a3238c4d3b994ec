"""Drawing the pieces of a hypernetwork, once it is known what each target asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bayeshnet.errors import UsageError
from bayeshnet.hnets.hyperfan import HeadInit
from bayeshnet.hnets.hyperfan_chunked import check_chunked, init_chunked
from bayeshnet.hnets.hyperfan_draw import check_bias_free, check_initialisable, draw_, init_hmlp
from bayeshnet.hnets.hyperfan_parts import ChunkedPart, HeadPart, Part, average

__all__ = ["Convert", "check_parts", "draw_parts"]

Convert = Callable[[HeadPart, Sequence[HeadInit]], Sequence[HeadInit]]
"""Gives heads without biases that have the same mean and variance; called once the hidden layers are drawn."""


def check_parts(parts: Sequence[Part], method: str) -> None:
    """Refuse what cannot be initialised, before anything is drawn.

    Args:
        parts: What is to be initialised.
        method: Its name, for the message.

    Raises:
        RuntimeError: If weights are external, or spectral or batch norm decides their scale.
    """
    for part in parts:
        if isinstance(part, HeadPart):
            check_initialisable(part.hnet, method)
        elif isinstance(part, ChunkedPart):
            check_chunked(part.hnet, method)
        elif not part.params and not part.record.conditional:
            raise UsageError(
                f"{method}: the container does not keep its plain weights (no_uncond_weights=True), so there is "
                "nothing to initialise; initialise one that keeps them, and pass its `unconditional_params`."
            )


def draw_parts(
    parts: Sequence[Part],
    heads: Sequence[HeadInit],
    plain: Sequence[HeadInit],
    *,
    uncond_var: float,
    cond_var: float,
    use_xavier: bool,
    chunk_vars: Sequence[float] = (),
    eps: float = 1e-5,
    normal: bool = False,
    convert: Convert | None = None,
) -> None:
    """Draw all pieces.

    Args:
        parts: The pieces.
        heads: For each target the head that it asks for.
        plain: The same for weights that have no head: mean and variance of the bias, plus what rows would add.
        uncond_var: Variance of the unconditional input.
        cond_var: Variance of the conditional input.
        use_xavier: Xavier rather than Kaiming.
        chunk_vars: For each target the variance that chunked networks are to give it.
        eps: The least variance of a chunk embedding.
        normal: Draw chunk embeddings from normal distributions.
        convert: What to do with heads that need a bias in a network without.
    """
    for part in parts:
        if isinstance(part, HeadPart) and convert is None:
            check_bias_free(part.hnet, _heads_of(part, heads))
    for part in parts:
        if isinstance(part, HeadPart):
            own = _heads_of(part, heads)
            inputs = part.inputs(uncond_var, cond_var)
            init_hmlp(part.hnet, own, inputs, use_xavier, None if convert is None else _bind(convert, part))
        elif isinstance(part, ChunkedPart):
            wanted = [average(chunk_vars, places) for places in part.places]
            sizes = [(part.hnet.uncond_in_size or 0, uncond_var), (part.hnet.cond_in_size or 0, cond_var)]
            init_chunked(part.hnet, wanted, sizes, use_xavier=use_xavier, eps=eps, normal=normal)
        else:
            head = HeadInit.average(plain, part.places)
            for param in part.params:
                draw_(param, head.bias_mean, head.bias_var + head.out_var)


def _heads_of(part: HeadPart, heads: Sequence[HeadInit]) -> list[HeadInit]:
    return [HeadInit.average(heads, places) for places in part.places]


def _bind(convert: Convert, part: HeadPart) -> Callable[[Sequence[HeadInit]], Sequence[HeadInit]]:
    return lambda heads: convert(part, heads)

"""The Gaussian initialisation under the path that hypnettorch's documentation gives it; see :mod:`bayeshnet.init`.

Example:
    >>> from bayeshnet.hnets import HMLP
    >>> from bayeshnet.mnets import MLP
    >>> mnet = MLP(n_in=5, n_out=1, no_weights=True)
    >>> hnet = HMLP(2 * mnet.param_shapes, uncond_in_size=4, cond_in_size=0)
    >>> gauss_hyperfan_init(hnet, mnet=mnet)
"""

from __future__ import annotations

from bayeshnet.init import gauss_hyperfan_init

__all__ = ["gauss_hyperfan_init"]

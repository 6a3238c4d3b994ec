"""What objects are, in plain data: to compare those of a file with those at hand, and to make them again."""

from __future__ import annotations

from bayeshnet.configuration.comparing import Difference, differences
from bayeshnet.configuration.configured import Configured
from bayeshnet.configuration.describing import described
from bayeshnet.configuration.packing import packed, unpacked
from bayeshnet.configuration.rebuilding import NotRebuiltError, rebuilt

__all__ = ["Configured", "Difference", "NotRebuiltError", "described", "differences", "packed", "rebuilt", "unpacked"]

"""Names of before version 0.2: found, with a warning that says where they are now."""

from __future__ import annotations

import pytest

from bayeshnet import entropy, errors
from bayeshnet.entropy import experimental


@pytest.mark.parametrize("name", experimental.__all__)
def test_experimental_estimators_are_found_in_entropy(name: str) -> None:
    with pytest.warns(FutureWarning, match=rf"entropy.{name}: is renamed .* use bayeshnet.entropy.experimental.{name}"):
        found = getattr(entropy, name)
    assert found is getattr(experimental, name)
    assert name not in entropy.__all__


def test_the_old_name_of_the_warning_is_the_same_class() -> None:
    with pytest.warns(FutureWarning, match="OwnWeightWarning: is renamed .* use bayeshnet.errors.SelfWeightWarning"):
        found = errors.OwnWeightWarning  # pyright: ignore[reportAttributeAccessIssue] - found by __getattr__
    assert found is errors.SelfWeightWarning

from __future__ import annotations

import math

from bayeshnet.entropy import Diagnosis
from bayeshnet.entropy.diagnosis import MEANINGS
from bayeshnet.errors import BayeshnetWarning, FoldingWarning


def test_the_table():
    values = {"elbo": -12.3456, "elbo_error": 0.0123, "k_hat": math.inf, "unheard_of": 1234.5678}
    assert str(Diagnosis(values, ["One.", "Two."], title="It")).splitlines() == [
        "It",
        "  elbo        -12.346 ± 0.012  evidence lower bound, nats",
        "  k_hat       inf              tail shape of the importance weights",
        "  unheard_of  1235",
        "advice",
        "  - One.",
        "  - Two.",
    ]
    huge = Diagnosis({"elbo": -1234567.0, "elbo_error": 4321.0})
    assert str(huge).splitlines()[0].split() == ["elbo", "-1234567", "±", "4321", *MEANINGS["elbo"].split()]
    assert huge.healthy
    assert "none: no problem was found" in str(huge)


def test_repr_is_one_line():
    assert repr(Diagnosis({})) == "Diagnosis(no numbers; healthy)"
    assert repr(Diagnosis({"k_hat": 0.12341}, ["One.", "Two."])) == "Diagnosis(k_hat=0.1234; 2 problems)"
    many = Diagnosis({f"a{i}": float(i) for i in range(9)}, ["One."], title="guide")
    assert repr(many) == "Diagnosis(guide: a0=0, a1=1, a2=2, a3=3, a4=4, a5=5, ...; 1 problem)"


def test_defaults():
    one, other = Diagnosis({}), Diagnosis({}, ["Fix it."], FoldingWarning)
    assert (one.healthy, one.category, one.title) == (True, BayeshnetWarning, "")
    assert not other.healthy
    assert one.advice is not Diagnosis({}).advice

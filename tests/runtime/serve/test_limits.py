"""Places and bytes: refused when there are no more, given back in the end."""

import pytest

from metah_runtime.serve.limits import Budget, Gate
from metah_runtime.serve.problems import Problem


def test_the_gate_counts_all_and_each() -> None:
    gate = Gate(limit=3, per_client=2)
    with gate.enter("a"), gate.enter("a"):
        with pytest.raises(Problem, match="2 requests of this client") as refused, gate.enter("a"):
            pass
        assert refused.value.status == 429
        with gate.enter("b"):
            assert gate.count == 3
            with pytest.raises(Problem, match="3 requests are at work") as full, gate.enter("c"):
                pass
            assert full.value.status == 503
            assert full.value.headers == {"Retry-After": "1"}
    assert gate.count == 0
    with pytest.raises(ZeroDivisionError), gate.enter("a"):
        raise ZeroDivisionError
    assert (gate.count, dict(gate._inside)) == (0, {})


def test_the_budget_gets_its_bytes_back() -> None:
    budget = Budget(10)
    with budget.hold() as one:
        one.add(6)
        with budget.hold() as two:
            two.add(4)
            with pytest.raises(Problem, match="too many bytes") as full:
                two.add(1)
        assert full.value.status == 503
        assert budget.used == 6
    assert budget.used == 0

"""Places and bytes: refused when there are no more, given back in the end."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from metah_runtime.serve import limits
from metah_runtime.serve.limits import Budget, FairSlots, Gate, SlowImages
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


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_slots_go_to_the_client_that_holds_the_fewest() -> None:
    order: list[str] = []

    async def take(slots: FairSlots, client: str) -> None:
        await slots.acquire(client)
        order.append(client)

    async def main() -> None:
        slots = FairSlots(2)
        waiting = [asyncio.create_task(take(slots, client)) for client in "aaaaabc"]
        await turn()
        assert order == ["a", "a"]
        slots.release("a")
        await turn()
        assert order[2:] == ["b"]
        slots.release("a")
        await turn()
        assert order[3:] == ["a"]  # of two that hold none, who has waited longest
        slots.release("a")
        await turn()
        assert order[4:] == ["c"]
        for client in "bcaa":
            slots.release(client)
            await turn()
        assert order[5:] == ["a"] * 2
        assert all(task.done() for task in waiting)
        assert (slots._free, dict(slots._held), slots._waiting) == (2, {}, {})

    run(main())


def test_a_penalized_client_leaves_a_slot_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(limits, "monotonic", lambda: now)

    async def main() -> None:
        nonlocal now
        slots = FairSlots(2)
        slots.penalize("a")
        await slots.acquire("a")
        second = asyncio.create_task(slots.acquire("a"))
        await turn()
        assert not second.done()
        await slots.acquire("b")
        slots.release("b")
        assert not second.done()
        now += limits.PENALTY
        await slots.acquire("c")
        slots.release("c")
        await second
        one = FairSlots(1)
        one.penalize("a")
        await one.acquire("a")  # of one slot nothing is kept back

    run(main())


def test_a_cancelled_wait_costs_no_slot() -> None:
    async def main() -> None:
        slots = FairSlots(1)
        await slots.acquire("a")
        early = asyncio.create_task(slots.acquire("b"))
        late = asyncio.create_task(slots.acquire("b"))
        await turn()
        early.cancel()
        await turn()
        slots.release("a")
        late.cancel()  # its turn has come already
        await turn()
        assert early.cancelled()
        assert late.cancelled()
        await slots.acquire("c")

    run(main())


def test_slow_images_are_known_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(limits, "monotonic", lambda: now)
    slow = SlowImages()
    slow.add(b"abc")
    assert b"abc" in slow
    assert b"abd" not in slow
    assert b"ab" not in slow
    now += limits.PENALTY
    assert b"abc" not in slow
    slow.add(b"xy")
    assert len(slow._until) == 1

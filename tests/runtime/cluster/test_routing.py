"""Hedging, cool-off and completeness on a clock that the test moves."""

import pytest
from tests.runtime.cluster.conftest import Behaviour, FakeTransport, answers, fails, silent

from metah_runtime.cluster.routing import (
    HedgePolicy,
    Router,
    ShardReplicas,
    ShardRequest,
    ShardResponse,
    ShardsMissing,
)
from metah_runtime.errors import ConfigError

Q = ShardRequest("search", ())


def router(shards: dict[str, list[str]], behaviours: dict[str, Behaviour], **policy: float):
    transport = FakeTransport(behaviours)
    groups = [ShardReplicas(d, tuple(names), f"shard {d}") for d, names in shards.items()]
    return Router(groups, transport, HedgePolicy(**policy)), transport


def test_every_shard_is_asked_once_and_in_turns():
    asked, transport = router(
        {"A": ["a0", "a1"], "B": ["b0", "b1"]},
        {n: answers(n[0].upper(), n) for n in ("a0", "a1", "b0", "b1")},
    )
    assert asked.ask_all(Q) == ("a0", "b0")
    assert asked.ask_all(Q) == ("a1", "b1")
    assert [name for _, name in transport.sent] == ["a0", "b0", "a1", "b1"]


def test_a_silent_replica_costs_one_hedge_then_nothing_until_it_has_cooled_off():
    asked, transport = router(
        {"A": ["a0", "a1"]}, {"a0": silent(), "a1": answers("A", 1)}, hedge=0.15, cool_off=5
    )
    assert asked.ask_all(Q) == (1,)
    assert transport.sent == [(0.0, "a0"), (0.15, "a1")]
    assert transport.time == pytest.approx(100.16)
    transport.sent.clear()
    while transport.time < 104.9:
        start = transport.time
        assert asked.ask_all(Q) == (1,)
        assert transport.time - start == pytest.approx(0.01)
        transport.time += 0.3
    assert {name for _, name in transport.sent} == {"a1"}
    transport.time = 106.0
    transport.sent.clear()
    for _ in range(2):
        asked.ask_all(Q)
    assert "a0" in {name for _, name in transport.sent}


def test_a_slow_answer_still_counts_and_warms_the_replica():
    asked, transport = router(
        {"A": ["a0", "a1"]}, {"a0": answers("A", 0, 0.3), "a1": silent()}, deadline=2
    )
    assert asked.ask_all(Q) == (0,)
    assert transport.sent == [(0.0, "a0"), (0.15, "a1")]
    for _ in range(3):
        assert asked.ask_all(Q) == (0,)
    # a1's turn: silent, cools off; a0's turn; a1's turn again, but a0 is asked first
    assert [name for _, name in transport.sent[2:]] == ["a1", "a0", "a0", "a1", "a0", "a1"]


def test_a_failure_is_followed_at_once_by_the_next_replica():
    asked, transport = router(
        {"A": ["a0", "a1", "a2"]},
        {"a0": fails(), "a1": fails("refused"), "a2": answers("A", 2)},
    )
    assert asked.ask_all(Q) == (2,)
    assert transport.sent == [(0.0, "a0"), (0.01, "a1"), (0.02, "a2")]


def test_a_replica_that_cannot_be_asked_is_passed_over():
    class Refusing(FakeTransport):
        def send(self, replica, request):
            if replica == "a0":
                raise ConnectionError("gone")
            return super().send(replica, request)

    transport = Refusing({"a1": answers("A", 1)})
    asked = Router([ShardReplicas("A", ("a0", "a1"), "shard A")], transport)
    assert asked.ask_all(Q) == (1,)


def test_the_failure_of_one_that_was_silent_asks_nobody_new():
    asked, transport = router(
        {"A": ["a0", "a1", "a2"]},
        {"a0": fails(seconds=0.2), "a1": answers("A", 1, 0.1), "a2": answers("A", 2)},
    )
    assert asked.ask_all(Q) == (1,)
    assert transport.sent == [(0.0, "a0"), (0.15, "a1")]


def test_a_missing_shard_is_an_error_that_names_it_and_the_reasons():
    asked, transport = router(
        {"A": ["a0"], "B": ["b0", "b1"]},
        {"a0": answers("A", 0), "b0": fails("worker killed"), "b1": fails("node gone")},
    )
    with pytest.raises(
        ShardsMissing,
        match=r"no answer of 1 of 2 shards: shard B \(b0: worker killed; b1: node gone\); fix: ",
    ) as caught:
        asked.ask_all(Q)
    assert caught.value.missing == (1,)
    assert transport.time == pytest.approx(100.02)  # all failed: no waiting for the deadline


def test_silence_of_all_ends_at_the_deadline():
    asked, transport = router(
        {"A": ["a0"], "B": ["b0", "b1"]},
        {"a0": answers("A", 0), "b0": silent(), "b1": silent()},
        deadline=1.5,
    )
    with pytest.raises(ShardsMissing, match=r"b0: silent for 1\.5 s; b1: silent for 1\.5 s"):
        asked.ask_all(Q)
    assert transport.time == pytest.approx(101.5)
    found = asked.ask(Q)
    assert (found.values, found.missing) == ((0, None), (1,))


def test_a_shard_without_replicas_is_missing():
    asked, _ = router({"A": ["a0"], "B": []}, {"a0": answers("A", 0)})
    with pytest.raises(ShardsMissing, match=r"shard B \(it has no replica\)"):
        asked.ask_all(Q)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (answers("OLD", 9), "answers for OLD, not for A"),
        (lambda _: (0.0, ShardResponse("A", 9, refusal="another index")), "another index"),
    ],
)
def test_an_answer_of_another_state_is_no_answer(wrong: Behaviour, reason: str):
    asked, _ = router({"A": ["a0", "a1"]}, {"a0": wrong, "a1": answers("A", 1)})
    assert [asked.ask_all(Q) for _ in range(4)] == [(1,)] * 4
    alone, _ = router({"A": ["a0"]}, {"a0": wrong})
    with pytest.raises(ShardsMissing, match=reason):
        alone.ask_all(Q)


def test_questions_that_take_long_are_hedged_later():
    asked, transport = router(
        {"A": ["a0", "a1"]}, dict.fromkeys(("a0", "a1"), answers("A", 1, 0.4)), deadline=4
    )
    big = ShardRequest("search", (), 1000)
    for _ in range(8):
        asked.ask_all(big)
    transport.sent.clear()
    asked.ask_all(big)
    assert len(transport.sent) == 1  # 0.4 s is usual: hedged after 0.8 s
    transport.sent.clear()
    asked.ask_all(ShardRequest("search", (), 1))
    assert len(transport.sent) == 2  # nothing is known of small ones: hedged after 0.15 s


def test_all_replicas_cooling_off_are_asked_all_the_same():
    asked, transport = router({"A": ["a0", "a1"]}, {"a0": fails(), "a1": fails()})
    with pytest.raises(ShardsMissing):
        asked.ask_all(Q)
    transport.behaviours = dict.fromkeys(("a0", "a1"), answers("A", 1))
    assert asked.ask_all(Q) == (1,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deadline": 0}, "deadline must be a number of seconds > 0, got 0"),
        ({"hedge": -1}, "hedge must be a number"),
        ({"cool_off": float("nan")}, "cool_off must be a number"),
        ({"cool_off": True}, "cool_off must be a number"),
        ({"deadline": 1, "hedge": 0.6}, "hedge must be at most half the deadline, got 0.6 and 1"),
    ],
)
def test_patience_refuses(values: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        HedgePolicy(**values)

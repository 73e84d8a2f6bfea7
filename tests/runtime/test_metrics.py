import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metah_runtime import ranking, reference
from metah_runtime.codes import CodeFormat, pack, unpack
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.metrics import (
    average_precision,
    average_precision_tieavg,
    evaluate,
    pairs,
    pooled_pr_area,
    pr_curve,
    precision_at_n,
)

Array = NDArray[np.generic]


def at_distances(distances: list[int], bits: int = 16) -> NDArray[np.uint8]:
    """Codes that have these distances from the code of zeros."""
    return pack(np.arange(bits) < np.array(distances)[:, None])


ZERO = at_distances([0])
ONE = np.ones(1, np.int64)


def slow_ap(relevant: list[bool]) -> float:
    hits, total = 0, 0.0
    for k, flag in enumerate(relevant, 1):
        if flag:
            hits += 1
            total += hits / k
    return total / hits if hits else 0.0


def share(left: Array, right: Array) -> bool:
    return bool((left & right).any()) if np.ndim(left) else bool(left == right)


def slow_order(
    q: Array, db: Array, form: CodeFormat
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Return the ranking of each query; by row, distances of hash codes and of whole codes."""
    orders, codes, wholes = [], [], []
    for one in unpack(q).tolist():
        keys = []
        for row, other in enumerate(unpack(db).tolist()):
            differ = [a != b for a, b in zip(one, other, strict=True)]
            code = sum(differ[: form.bits])
            keys.append((form.code_weight * code + sum(differ[form.bits :]), code, row))
        orders.append([row for _, _, row in sorted(keys)])
        codes.append([code for _, code, _ in keys])
        wholes.append([whole for whole, _, _ in keys])
    return orders, codes, wholes


def slow_evaluate(
    q: Array, ql: Array, db: Array, dl: Array, radius: int, form: CodeFormat | None = None
) -> dict[str, float]:
    """Score by plain loops over one query at a time, in the order of the database."""
    form = form or CodeFormat(bits=q.shape[1] * 8)
    orders, dist, near = slow_order(q, db, form)
    rows = []
    for i, order in enumerate(orders):
        relevant = [share(ql[i], dl[j]) for j in order]
        ball = [flag for j, flag in zip(order, relevant, strict=True) if dist[i][j] <= radius]
        rows.append(
            (
                slow_ap(ball),
                float(not ball),
                float(len(ball)),
                sum(ball) / len(ball) if ball else 0.0,
                sum(ball) / sum(relevant) if any(relevant) else 0.0,
                slow_ap(relevant),
                slow_map_r(relevant),
                sum(relevant[:10]) / min(10, len(relevant)),
            )
        )
    names = (
        *("map_h2", "empty_balls", "ball_size", "precision_h2", "recall_h2", "map_full"),
        *("map_r", "precision_at_10"),
    )
    found = dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
    own, _, _ = slow_order(db, db, form)
    found["self_first"] = float(np.mean([order[0] == j for j, order in enumerate(own)]))
    both = [(near[i][j], share(ql[i], dl[j])) for i in range(len(q)) for j in range(len(db))]
    return {**found, "pr_area": slow_pr_area(both)}


def slow_map_r(relevant: list[bool]) -> float:
    r = sum(relevant)
    return sum(sum(relevant[: i + 1]) / (i + 1) for i in range(r) if relevant[i]) / max(r, 1)


def slow_pr_area(pairs: list[tuple[int, bool]]) -> float:
    """Trapezoids between one threshold of the distance and the next, counted anew at each."""
    total, area = sum(flag for _, flag in pairs), 0.0
    before: tuple[float, float] | None = None
    for threshold in sorted({d for d, _ in pairs}):
        inside = [flag for d, flag in pairs if d <= threshold]
        precision, recall = sum(inside) / len(inside), sum(inside) / total if total else 0.0
        p, r = before or (precision, 0.0)
        area += (recall - r) * (precision + p) / 2
        before = precision, recall
    return area


def brute_tieavg(relevant: list[bool], distances: list[int]) -> float:
    """Mean AP over all orders that keep the distances ascending."""
    groups = [
        [flag for flag, d in zip(relevant, distances, strict=True) if d == value]
        for value in sorted(set(distances))
    ]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    return float(np.mean([slow_ap([flag for part in order for flag in part]) for order in orders]))


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Array, Array, Array, Array]:
    """Few short codes (many ties, empty balls) with single or multi-hot labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries, items = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    bits = draw(st.sampled_from([8, 24]))
    centres = rng.integers(0, 2, (3, bits))
    q, db = (
        pack(centres[rng.integers(0, 3, n)] ^ (rng.random((n, bits)) < 0.1))
        for n in (queries, items)
    )
    if draw(st.booleans()):
        return q, rng.integers(0, 4, queries), db, rng.integers(0, 3, items)
    ql, dl = (rng.random((n, 4)) < 0.3 for n in (queries, items))
    return q, ql.astype(np.uint8), db, dl.astype(np.uint8)


@st.composite
def formats(draw: st.DrawFn, total: int) -> CodeFormat:
    """A hash code of 8 bits or more, and detail of the rest of ``total`` bits."""
    bits = draw(st.sampled_from(range(8, total + 1, 8)))
    weight = draw(st.integers(1, 4)) if bits < total else 1
    return CodeFormat(bits=bits, detail_bits=total - bits, code_weight=weight)


class TestGolden:
    distances = (0, 1, 1, 2, 2, 3)
    labels = np.array([1, 0, 1, 1, 0, 1])

    def test_stable_order_and_the_denominator(self) -> None:
        found = evaluate(ZERO, ONE, at_distances([*self.distances]), self.labels, seed=None)
        assert found.map_h2 == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
        assert found.map_h2 == pytest.approx(0.80556, abs=5e-6)
        assert found.map_h2_tieavg == pytest.approx(0.83611, abs=5e-6)
        assert found.precision_h2 == 3 / 5
        assert found.recall_h2 == 3 / 4
        assert found.ball_size == 5
        assert found.empty_balls == 0
        assert found.map_full == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)
        assert (found.queries, found.database, found.bits, found.radius) == (1, 6, 16, 2)

    def test_tie_orders(self) -> None:
        seen = set()
        for middle, last in itertools.product([(1, 2), (2, 1)], [(3, 4), (4, 3)]):
            order = [0, *middle, *last, 5]
            found = evaluate(
                ZERO, ONE, at_distances([*self.distances]), self.labels[order], seed=None
            )
            seen.add(round(found.map_h2, 5))
            assert found.map_h2_tieavg == pytest.approx(0.836111, abs=1e-6)
        assert seen == {0.75556, 0.80556, 0.86667, 0.91667}

    def test_the_order_given_does_not_matter_after_the_shuffle(self) -> None:
        codes = at_distances([1] * 20)
        labels = np.repeat([1, 0], 10)
        assert evaluate(ZERO, ONE, codes, labels, seed=None).map_h2 == 1
        scores = {evaluate(ZERO, ONE, codes, labels, seed=seed).map_h2 for seed in range(5)}
        assert len(scores) == 5
        assert max(scores) < 1
        again = evaluate(ZERO, ONE, codes, labels, seed=3)
        assert again == evaluate(ZERO, ONE, codes, labels, seed=3)

    def test_empty_balls_and_balls_with_nothing_relevant_count_as_zero(self) -> None:
        queries = at_distances([0, 8, 16])
        found = evaluate(
            queries, np.array([1, 1, 5]), at_distances([0, 1, 16]), np.array([1, 1, 1]), seed=None
        )
        assert found.map_h2 == pytest.approx(1 / 3)
        assert found.map_h2_tieavg == pytest.approx(1 / 3)
        assert found.empty_balls == pytest.approx(1 / 3)
        assert found.ball_size == pytest.approx(1)
        assert found.precision_h2 == pytest.approx(1 / 3)
        assert found.recall_h2 == pytest.approx((2 / 3) / 3)

    def test_radius(self) -> None:
        codes, labels = at_distances([*self.distances]), self.labels
        assert evaluate(ZERO, ONE, codes, labels, radius=0, seed=None).ball_size == 1
        whole = evaluate(ZERO, ONE, codes, labels, radius=3, seed=None)
        assert whole.map_h2 == whole.map_full
        assert whole.recall_h2 == 1


class TestClosedForms:
    @pytest.mark.parametrize(("n", "r"), [(1, 1), (2, 1), (7, 3), (50, 5), (40, 40)])
    def test_constant_code(self, n: int, r: int) -> None:
        found = evaluate(ZERO, ONE, at_distances([0] * n), np.arange(n) < r)
        assert found.map_h2_tieavg == pytest.approx(expected_tie(n, r), rel=1e-12)
        assert found.precision_h2 == pytest.approx(r / n)

    def test_perfect_class_codes(self) -> None:
        labels = np.arange(40) % 4
        codes = pack(np.repeat(np.eye(4), 8, axis=1)[labels])
        found = evaluate(codes[:8], labels[:8], codes, labels)
        for name in ("map_h2", "map_h2_tieavg", "precision_h2", "recall_h2", "map_full"):
            assert getattr(found, name) == 1
        assert found.precision_at_10 == 1
        assert found.self_first == 4 / 40
        assert found.ball_size == 10

    def test_codes_apart_from_each_other(self) -> None:
        codes = pack(np.eye(16) * 0 + np.tri(16))[::4]
        labels = np.zeros(len(codes), int)
        found = evaluate(~codes, labels, codes, labels)
        assert found.map_h2 == found.recall_h2 == 0
        assert found.empty_balls == 1
        assert found.map_full == 1

    def test_codewords_of_predicted_classes(self) -> None:
        rng = np.random.default_rng(0)
        true = np.arange(300) % 3
        guess = np.where(rng.random(300) < 0.7, true, rng.integers(0, 3, 300))
        codes = pack(np.repeat(np.eye(3), 8, axis=1)[guess])
        confusion = np.zeros((3, 3), int)
        np.add.at(confusion, (true, guess), 1)
        expected = np.mean(
            [
                expected_tie(confusion[:, c].sum(), confusion[k, c])
                for k, c in zip(true, guess, strict=True)
            ]
        )
        found = evaluate(codes, true, codes, true)
        assert found.map_h2_tieavg == pytest.approx(expected, rel=1e-12)


def expected_tie(n: int, r: int) -> float:
    """Expected AP of r relevant among n in random order: (H_n + (r - 1)/(n - 1) (n - H_n)) / n."""
    harmonic = math.fsum(1 / k for k in range(1, n + 1))
    return (harmonic + (r - 1) / max(n - 1, 1) * (n - harmonic)) / n


class TestAgainstSlowReference:
    @settings(max_examples=150, deadline=None)
    @given(task=tasks(), radius=st.integers(0, 9))
    def test_evaluate(self, task: tuple[Array, Array, Array, Array], radius: int) -> None:
        found = asdict(evaluate(*task, radius=radius, seed=None))
        for name, value in slow_evaluate(*task, radius).items():
            assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name

    @settings(max_examples=150, deadline=None)
    @given(task=tasks(), radius=st.integers(0, 9), data=st.data())
    def test_evaluate_with_detail(
        self, task: tuple[Array, Array, Array, Array], radius: int, data: st.DataObject
    ) -> None:
        form = data.draw(formats(task[0].shape[1] * 8))
        scores = evaluate(*task, radius=radius, seed=None, code_format=form)
        found = asdict(scores)
        for name, value in slow_evaluate(*task, radius, form).items():
            assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
        assert (scores.bits, scores.detail_bits) == (form.bits, form.detail_bits)
        assert (scores.bytes, scores.code_weight) == (form.width, form.code_weight)
        n = min(10, len(task[2]))
        first = precision_at_n(*task, [n], seed=None, code_format=form)
        assert first[0] == pytest.approx(scores.precision_at_10, rel=1e-12)

    @settings(max_examples=100, deadline=None)
    @given(task=tasks(), data=st.data())
    def test_pairs(self, task: tuple[Array, Array, Array, Array], data: st.DataObject) -> None:
        q, _, db, _ = task
        form = data.draw(formats(q.shape[1] * 8))
        pair = data.draw(st.lists(st.integers(0, len(db) - 1), min_size=len(q), max_size=len(q)))
        orders, _, _ = slow_order(q, db, form)
        ranks = [order.index(row) + 1 for order, row in zip(orders, pair, strict=True)]
        found = pairs(q, db, pair, seed=None, code_format=form)
        assert found.rank_1 == pytest.approx(np.mean([rank == 1 for rank in ranks]))
        assert found.within_10 == pytest.approx(np.mean([rank <= 10 for rank in ranks]))
        assert found.mrr == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert (found.queries, found.database, found.bytes) == (len(q), len(db), form.width)

    @settings(max_examples=50, deadline=None)
    @given(task=tasks(), seed=st.integers(0, 9))
    def test_seed_is_one_shuffle_of_the_database(
        self, task: tuple[Array, Array, Array, Array], seed: int
    ) -> None:
        q, ql, db, dl = task
        order = np.random.default_rng(seed).permutation(len(db))
        assert evaluate(*task, seed=seed) == evaluate(q, ql, db[order], dl[order], seed=None)

    @given(
        st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=7).map(sorted)
    )
    @settings(max_examples=60, deadline=None)
    def test_tie_average_is_the_mean_over_all_orders(self, items: list[tuple[int, bool]]) -> None:
        distances, relevant = [d for d, _ in items], [flag for _, flag in items]
        expected = brute_tieavg(relevant, distances)
        assert average_precision_tieavg(relevant, distances) == pytest.approx(expected, rel=1e-12)
        assert average_precision(relevant) == pytest.approx(slow_ap(relevant), rel=1e-12)

    @given(
        st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40), st.integers(0, 2**32)
    )
    @settings(max_examples=100, deadline=None)
    def test_area_of_pooled_pairs(self, pairs: list[tuple[int, bool]], seed: int) -> None:
        distances, relevant = (
            np.array([p[k] for p in pairs], kind) for k, kind in ((0, int), (1, bool))
        )
        area = pooled_pr_area(distances, relevant)
        assert area == pytest.approx(slow_pr_area(pairs), rel=1e-12, abs=1e-15)
        assert 0 <= area <= 1
        order = np.random.default_rng(seed).permutation(len(pairs))
        assert pooled_pr_area(distances[order], relevant[order]) == area
        if relevant.any():  # all at one distance: the part that is relevant; relevant first: 1
            assert pooled_pr_area(0 * distances, relevant) == pytest.approx(relevant.mean())
            assert pooled_pr_area(1 - relevant.astype(int), relevant) == 1

    def test_pooling_lets_a_query_with_many_relevant_images_outweigh_others(self) -> None:
        queries = at_distances([0, 16])
        codes, labels = at_distances([0, 1, 2, 16]), np.array([1, 1, 1, 2])
        found = evaluate(queries, np.array([1, 1]), codes, labels, seed=None)
        assert found.map_full == pytest.approx((1 + (1 / 2 + 2 / 3 + 3 / 4) / 3) / 2)
        assert found.map_r == pytest.approx((1 + (1 / 2 + 2 / 3) / 3) / 2)
        dist = [0, 1, 2, 16, 16, 15, 14, 0]
        pairs = [(d, label == 1) for d, label in zip(dist, [*labels, *labels], strict=True)]
        assert found.pr_area == pytest.approx(slow_pr_area(pairs))
        assert found.pr_area < found.map_full

    def test_bad_pairs(self) -> None:
        for distances, relevant in (([0.5], [True]), ([1, 2], [True]), ([[1]], [[True]])):
            with pytest.raises(DataError, match="distances and relevant must be"):
                pooled_pr_area(distances, relevant)

    def test_average_precision_against_scikit_learn(self) -> None:
        from sklearn.metrics import average_precision_score

        relevant = np.random.default_rng(1).random(500) < 0.2
        expected = average_precision_score(relevant, -np.arange(500))
        assert average_precision(relevant) == pytest.approx(expected, rel=1e-12)

    @settings(max_examples=60, deadline=None)
    @given(task=tasks())
    def test_curve_and_precision_at_n(self, task: tuple[Array, Array, Array, Array]) -> None:
        q, ql, db, dl = task
        dist = reference.distances(q, db)
        relevant = np.array([[share(a, b) for b in dl] for a in ql])
        curve = pr_curve(*task)
        bits = q.shape[1] * 8
        assert curve.radius.tolist() == list(range(bits + 1))
        for radius in range(bits + 1):
            ball = dist <= radius
            good = (ball & relevant).sum(axis=1)
            precision = np.mean(good / np.maximum(ball.sum(axis=1), 1))
            recall = np.mean(good / np.maximum(relevant.sum(axis=1), 1))
            assert curve.precision[radius] == pytest.approx(precision, rel=1e-12)
            assert curve.recall[radius] == pytest.approx(recall, rel=1e-12)
        ns = sorted({1, len(db) // 2 or 1, len(db)})
        ranked = np.take_along_axis(relevant, np.argsort(dist, axis=1, kind="stable"), axis=1)
        expected = [ranked[:, :n].mean() for n in ns]
        assert precision_at_n(*task, ns, seed=None).tolist() == pytest.approx(expected, rel=1e-12)

    def test_queries_in_small_chunks_give_the_same(self, monkeypatch) -> None:
        rng = np.random.default_rng(2)
        task = (
            rng.integers(0, 4, (30, 2), np.uint8),
            rng.integers(0, 3, 30),
            rng.integers(0, 4, (50, 2), np.uint8),
            rng.integers(0, 3, 50),
        )
        whole = evaluate(*task), precision_at_n(*task, [5, 50]), pr_curve(*task).recall
        monkeypatch.setattr(ranking, "CHUNK_PAIRS", 170)
        parts = evaluate(*task), precision_at_n(*task, [5, 50]), pr_curve(*task).recall
        assert parts[0] == whole[0]
        np.testing.assert_allclose(parts[1], whole[1], rtol=1e-12)
        np.testing.assert_allclose(parts[2], whole[2], rtol=1e-12)


class TestInvariance:
    @settings(max_examples=40, deadline=None)
    @given(task=tasks(), seed=st.integers(0, 2**32))
    def test_permuted_and_flipped_bits(
        self, task: tuple[Array, Array, Array, Array], seed: int
    ) -> None:
        q, ql, db, dl = task
        rng = np.random.default_rng(seed)
        order = rng.permutation(q.shape[1] * 8)
        flip = rng.integers(0, 256, q.shape[1], np.uint8)
        moved = [pack(unpack(codes ^ flip)[:, order]) for codes in (q, db)]
        assert evaluate(moved[0], ql, moved[1], dl) == evaluate(*task)

    def test_far_images_change_nothing_inside_the_ball(self) -> None:
        rng = np.random.default_rng(3)
        q, db = at_distances([0, 1] * 5), at_distances(rng.integers(0, 4, 60).tolist())
        ql, dl = rng.integers(0, 3, 10), rng.integers(0, 3, 60)
        before = evaluate(q, ql, db, dl, seed=None)
        more = np.concatenate([at_distances([9] * 40), db])
        after = evaluate(q, ql, more, np.concatenate([np.zeros(40, int), dl]), seed=None)
        for name in ("map_h2", "map_h2_tieavg", "empty_balls", "ball_size", "precision_h2"):
            assert getattr(after, name) == getattr(before, name), name
        assert after.recall_h2 < before.recall_h2

    def test_one_hot_labels_score_like_classes(self) -> None:
        rng = np.random.default_rng(4)
        q, db = rng.integers(0, 3, (9, 1), np.uint8), rng.integers(0, 3, (70, 1), np.uint8)
        ql, dl = rng.integers(0, 5, 9), rng.integers(0, 5, 70)
        hot = np.eye(5, dtype=np.uint8)
        assert evaluate(q, hot[ql], db, hot[dl]) == evaluate(q, ql, db, dl)
        assert evaluate(q, hot[ql].astype(bool), db, hot[dl]) == evaluate(q, ql, db, dl)

    def test_multi_label_relevance_is_one_shared_label(self) -> None:
        query = np.array([[1, 1, 0]], np.uint8)
        items = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]], np.uint8)
        found = evaluate(ZERO, query, at_distances([0, 1, 2, 9]), items, seed=None)
        assert found.precision_h2 == pytest.approx(1 / 3)
        assert found.recall_h2 == 1 / 2


class TestBadInput:
    codes = np.zeros((3, 2), np.uint8)
    labels = np.zeros(3, int)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({0: np.zeros((3, 4), np.uint8)}, "database codes have 16 bits, expected 32"),
            ({0: np.zeros((3, 16))}, "query codes must be packed uint8"),
            ({0: np.zeros((0, 2), np.uint8), 1: []}, "need queries and a database, got 0 and 3"),
            ({2: np.zeros((0, 2), np.uint8), 3: []}, "need queries and a database, got 3 and 0"),
            ({1: np.zeros(2, int)}, r"query labels must have shape \(3,\) or \(3, C\), got \(2,\)"),
            ({3: np.zeros((3, 1, 1), int)}, "database labels must have shape"),
            ({3: np.zeros(3)}, "database labels must be whole numbers, got dtype float64"),
            ({1: np.full((3, 2), 2), 3: np.ones((3, 2), int)}, r"must hold 0 and 1 alone"),
            ({1: np.ones((3, 2), int)}, "labels must be of one kind"),
            ({1: np.ones((3, 2), int), 3: np.ones((3, 4), int)}, "labels must be of one kind"),
        ],
    )
    def test_arrays(self, change: dict[int, object], message: str) -> None:
        given: list[object] = [self.codes, self.labels, self.codes, self.labels]
        for place, value in change.items():
            given[place] = value
        with pytest.raises(DataError, match=message):
            evaluate(*given)

    def test_numbers(self) -> None:
        task = (self.codes, self.labels, self.codes, self.labels)
        with pytest.raises(ConfigError, match=r"radius must be a whole number >= 0, got -1"):
            evaluate(*task, radius=-1)
        for ns in ([0], [4], [], [1.5]):
            with pytest.raises(ConfigError, match=r"each N must be in 1\.\.3"):
                precision_at_n(*task, ns)

    def test_pairs(self) -> None:
        with pytest.raises(DataError, match=r"rows must be \(3,\) whole numbers, got \(2,\)"):
            pairs(self.codes, self.codes, [0, 1])
        with pytest.raises(DataError, match=r"rows must be in 0\.\.2, got 0\.\.3"):
            pairs(self.codes, self.codes, [0, 1, 3])

    def test_codes_of_another_format(self) -> None:
        form = CodeFormat(bits=16, detail_bits=8)
        with pytest.raises(DataError, match="query codes have 16 bits, expected 24"):
            evaluate(self.codes, self.labels, self.codes, self.labels, code_format=form)

    def test_rankings(self) -> None:
        assert average_precision([]) == 0
        with pytest.raises(DataError, match="distances must ascend"):
            average_precision_tieavg([True, False], [1, 0])
        with pytest.raises(DataError, match=r"must be \(n,\)"):
            average_precision_tieavg([True], [1, 2])

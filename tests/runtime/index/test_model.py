"""Index against a dictionary, in any order of calls that hypothesis finds."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from metah_runtime import reference
from metah_runtime.codes import CodeFormat
from metah_runtime.domain import DOMAINS, Domain
from metah_runtime.errors import DataError, IndexMismatch
from metah_runtime.index import Index

IDS = st.integers(0, 40) | st.integers(0, 2**63 - 100)


class Machine(RuleBasedStateMachine):
    """The dictionary {id: (code, path, domain)} is the truth."""

    code_format = CodeFormat(bits=16)

    def __init__(self) -> None:
        super().__init__()
        where = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="metah-", dir=where))
        self.truth: dict[int, tuple[bytes, str | None, str]] = {}
        self.rng = np.random.default_rng(5)
        self.used = -1

    def teardown(self) -> None:
        self.index.close()
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        self.index = Index.create(self.folder / "index", code_format=self.code_format)

    def codes(self, n: int) -> np.ndarray:
        return self.rng.integers(0, 8, (n, self.code_format.width), dtype=np.uint8)

    def learn(
        self, ids: list[int], codes: np.ndarray, paths: list[str] | None, domain: Domain
    ) -> None:
        names = paths or [None] * len(ids)
        rows = zip(ids, codes, names, strict=True)
        self.truth |= {i: (bytes(code), path, domain) for i, code, path in rows}
        self.used = max([self.used, *ids])

    @rule(n=st.integers(0, 12), named=st.booleans(), domain=st.sampled_from(DOMAINS))
    def add(self, n: int, named: bool, domain: Domain) -> None:
        codes, paths = self.codes(n), [f"{i}" for i in range(n)] if named else None
        ids = self.index.add(codes, paths=paths, domain=domain).tolist()
        assert ids == list(range(self.used + 1, self.used + 1 + n))
        self.learn(ids, codes, paths, domain)

    @rule(
        ids=st.lists(IDS, max_size=12),
        upsert=st.booleans(),
        stream=st.booleans(),
        domain=st.sampled_from(DOMAINS),
    )
    def add_with_ids(self, ids: list[int], upsert: bool, stream: bool, domain: Domain) -> None:
        codes, mode = self.codes(len(ids)), "upsert" if upsert else "error"
        given = np.array(ids, np.int64)
        try:
            if stream:
                self.index.add_batches([(codes, given, None, domain)], on_duplicate=mode)
            else:
                self.index.add(codes, ids=given, on_duplicate=mode, domain=domain)
        except DataError:
            assert len(set(ids)) < len(ids)
        except IndexMismatch:
            assert not upsert
            assert set(ids) & set(self.truth)
        else:
            assert len(set(ids)) == len(ids)
            assert upsert or not set(ids) & set(self.truth)
            self.learn(ids, codes, None, domain)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        known = st.sampled_from(sorted(self.truth)) if self.truth else st.nothing()
        ids = data.draw(st.lists(known | IDS, max_size=10))
        count = self.index.remove(ids, missing="ignore")
        assert count == len(set(ids) & set(self.truth))
        for i in ids:
            self.truth.pop(i, None)

    @rule()
    def compact(self) -> None:
        self.index.compact()
        domains = {domain for _, _, domain in self.truth.values()}
        assert len(self.index.info()["segments"]) == len(domains)

    @rule()
    def reopen(self) -> None:
        self.index = Index.open(self.folder / "index", check="open")

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "index"):
            return
        ids = np.array(sorted(self.truth), np.int64)
        codes = np.array([list(self.truth[i][0]) for i in ids.tolist()], np.uint8)
        codes = codes.reshape(-1, self.code_format.width)
        assert self.index.ids().tolist() == ids.tolist()
        assert np.array_equal(self.index.codes(ids), codes)
        assert self.index.paths(ids) == [self.truth[i][1] for i in ids.tolist()]
        assert self.index.domains(ids) == [self.truth[i][2] for i in ids.tolist()]
        query, form = self.codes(2), self.code_format
        for k in (1, 3, len(ids) + 1):
            mine, due = self.index.search(query, k), reference.search(query, codes, k, ids, form)
            assert np.array_equal(mine.ids, due.ids)
            assert np.array_equal(mine.distances, due.distances)
            assert np.array_equal(mine.code_distances, due.code_distances)
        hits = self.index.range_search(query, 3)
        within = reference.range_search(query, codes, 3, ids, form)
        assert np.array_equal(hits.lims, within.lims)
        assert np.array_equal(hits.ids, within.ids)
        assert np.array_equal(hits.code_distances, within.code_distances)
        assert np.array_equal(self.index.count(query, 3), within.counts)


class DetailMachine(Machine):
    """The same with a detail code."""

    code_format = CodeFormat(bits=8, detail_bits=16, code_weight=2)


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
DetailMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestIndexAgainstADictionary = Machine.TestCase
TestDetailIndexAgainstADictionary = DetailMachine.TestCase

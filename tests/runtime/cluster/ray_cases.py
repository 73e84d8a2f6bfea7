"""What must hold on a real Ray cluster of two nodes; test_on_ray.py runs this in namespaces."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.runtime.cluster.conftest import build_index
from tests.runtime.cluster.two_nodes import ADDRESS, TwoNodes

from metah_runtime.cli import console
from metah_runtime.cli.main import cli
from metah_runtime.cluster import access, actors
from metah_runtime.cluster.routing import HedgePolicy, ShardsMissing
from metah_runtime.cluster.searcher import ClusterIndex
from metah_runtime.errors import ClusterError, IndexMismatch
from metah_runtime.index import Index
from metah_runtime.model.bundle import Bundle
from metah_runtime.results import Matches

pytestmark = pytest.mark.timeout(2000)
PATIENT = HedgePolicy(deadline=20, hedge=0.15, cool_off=2)
METAH = [sys.executable, "-c", "from metah_runtime.cli.main import main; main()", "cluster"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with TwoNodes() as two:
        assert access.connect(ADDRESS) == ADDRESS
        import ray

        until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)
        yield two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("served") / "index", bits=64)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (4, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def due(folder: Path, queries: np.ndarray) -> Matches:
    with Index.open(folder) as index:
        return index.search(queries, 100)


@pytest.fixture
def served(nodes: TwoNodes, folder: Path) -> ClusterIndex:
    return actors.find("two", policy=PATIENT)


def until(holds: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)


def replicas() -> dict[tuple[int, int], actors.ReplicaStatus]:
    return {(row.shard, row.replica): row for row in actors.status("two")[1]}


def all_serve() -> bool:
    return all(row.state == "serving" for row in replicas().values())


def check(found: Matches, due: Matches) -> None:
    assert found.ids.tobytes() == due.ids.tobytes()
    assert found.distances.tobytes() == due.distances.tobytes()


def metah(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as end:
        console.run(cli, "metah-search", ["cluster", *args])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    return out


def test_too_few_nodes(nodes: TwoNodes, folder: Path) -> None:
    with pytest.raises(ClusterError, match="3 replicas of a shard need 3 nodes, Ray has 2"):
        actors.start(folder, ADDRESS, name="three", replicas=3)
    with pytest.raises(ClusterError, match="no cluster 'three' runs here"):
        actors.find("three")


def test_start_status_query(
    nodes: TwoNodes,
    folder: Path,
    queries: np.ndarray,
    due: Matches,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--name", "two", "--address", ADDRESS]
    started = json.loads(metah(capsys, "start", str(folder), "--shards", "2", "--json", *options))
    assert (started["codes"], started["shards"], started["replicas"]) == (493, 2, 2)
    facts = json.loads(metah(capsys, "status", "--json", *options))
    assert facts["ok"]
    rows = facts["replicas"]
    assert [(row["shard"], row["replica"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one, other in (rows[:2], rows[2:]):
        assert one["node"] != other["node"]
        assert one["codes"] == other["codes"]
    hexes = [part for q in queries for part in ("--code", bytes(q).hex())]
    answer = json.loads(metah(capsys, "query", "-k", "100", "--json", *hexes, *options))
    assert (answer["complete"], answer["missing"]) == (True, [])
    ids = [[hit["id"] for hit in item["matches"]] for item in answer["queries"]]
    assert ids == due.ids.tolist()
    with Index.open(folder) as index:
        paths = [hit["path"] for hit in answer["queries"][0]["matches"]]
        assert paths == index.paths(due.ids[0])
    with pytest.raises(ClusterError, match="a cluster 'two' runs already"):
        actors.start(folder, ADDRESS, name="two")


def test_answers_are_those_of_one_machine(
    served: ClusterIndex, folder: Path, queries: np.ndarray
) -> None:
    with Index.open(folder) as index:
        for k in (1, 37, 1000):
            check(served.search(queries, k), index.search(queries, k))
        many = np.random.default_rng(4).integers(0, 256, (20_000, 8), dtype=np.uint8)
        check(served.search(many, 3), index.search(many, 3))  # through the object store
        found, wanted = served.range_search(queries, 24), index.range_search(queries, 24)
        assert found.ids.tobytes() == wanted.ids.tobytes()
        assert found.lims.tobytes() == wanted.lims.tobytes()
        assert (served.count(queries, 24) == index.count(queries, 24)).all()
        ids = index.ids()
        assert served.paths(ids) == index.paths(ids)
    with pytest.raises(IndexMismatch, match="serves codes of model model-a, expected model-b"):
        actors.find("two", expect="model-b")


def test_who_has_no_token_stays_outside(nodes: TwoNodes) -> None:
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    bare["HOME"] = str(nodes.folder / "nobody")
    callers = {
        "its token is another one": bare | {"RAY_AUTH_TOKEN": "0" * 64},
        "there is no token here": bare,
        "METAH works with token alone": bare | {"RAY_AUTH_MODE": "disabled"},
    }
    started = {
        reason: subprocess.Popen(
            [*METAH, "status", "--address", ADDRESS],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for reason, env in callers.items()
    }
    for reason, process in started.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1, err
        last = err.strip().splitlines()[-1]
        assert "error: " in last
        assert reason in last
        assert "Traceback" not in err
    access.require_token(ADDRESS)


def test_a_stopped_replica(served: ClusterIndex, queries: np.ndarray, due: Matches) -> None:
    for number in (0, 1):
        row = replicas()[0, number]
        assert row.process is not None
        os.kill(row.process, signal.SIGSTOP)
        try:
            for _ in range(10):
                check(served.search(queries, 100), due)
            assert replicas()[0, number].state == "silent"
        finally:
            os.kill(row.process, signal.SIGCONT)
        until(all_serve)


def test_a_replica_killed_amid_queries(
    served: ClusterIndex, queries: np.ndarray, due: Matches
) -> None:
    stop, failures, count = threading.Event(), list[BaseException](), 0

    def ask() -> None:
        nonlocal count
        try:
            while not stop.is_set():
                check(served.search(queries, 100), due)
                count += 1
        except BaseException as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for place in ((0, 0), (1, 1)):
            seen = count
            until(lambda seen=seen: count > seen + 3 or bool(failures))
            row = replicas()[place]
            assert row.process is not None
            os.kill(row.process, signal.SIGKILL)
            until(lambda seen=count: count > seen + 10 or bool(failures))
    finally:
        stop.set()
        asking.join()
    assert not failures
    until(all_serve)  # Ray has started them again, and they have opened their files again


def test_all_replicas_of_a_shard(
    nodes: TwoNodes,
    queries: np.ndarray,
    due: Matches,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served = actors.find("two", policy=HedgePolicy(deadline=1, cool_off=1))
    rows = [replicas()[1, number] for number in (0, 1)]
    for row in rows:
        os.kill(row.process or 0, signal.SIGSTOP)
    try:
        with pytest.raises(ShardsMissing, match=r"no answer of 1 of 2 shards: shard 1 .*silent"):
            served.search(queries, 100)
        part = served.search_partial(queries, 100)
        assert part.missing == (1,)
        there = int(served.count_partial(queries[:1], 64).answer[0])
        assert part.answer.ids.shape == (4, min(100, there))
        assert set(part.answer.ids[0]) - set(due.ids[0])  # others moved up: it is no whole answer
        options = ["--name", "two", "--address", ADDRESS, "--code", bytes(queries[0]).hex()]
        with pytest.raises(SystemExit):
            console.run(
                cli,
                "metah-search",
                ["cluster", "query", *options, "--json", "--partial", "--deadline", "1"],
            )
        out, err = capsys.readouterr()
        answer = json.loads(out)
        assert (answer["complete"], answer["missing"]) == (False, [1])
        assert "warning: partial answer: shards 1 of 2 are missing" in err
    finally:
        for row in rows:
            os.kill(row.process or 0, signal.SIGCONT)
    until(all_serve)
    time.sleep(1)
    check(served.search(queries, 100), due)


def test_an_old_copy_on_one_node(
    nodes: TwoNodes,
    served: ClusterIndex,
    queries: np.ndarray,
    due: Matches,
    folder: Path,
    tmp_path: Path,
) -> None:
    import ray

    old = build_index(tmp_path / "old", bits=64, seed=9)
    other = next(n["NodeID"] for n in ray.nodes() if n["NodeManagerAddress"] == "10.77.0.2")
    there = [row for row in replicas().values() if row.node == other]
    assert len(there) == 2
    nodes.lay_over(folder, old)
    try:
        for row in there:
            os.kill(row.process or 0, signal.SIGKILL)
        until(lambda: sum("refused: " in row.state for row in replicas().values()) == 2)
        for _ in range(10):
            check(served.search(queries, 100), due)
        with pytest.raises(ClusterError, match=r"refuses to join: .* is not what plan"):
            actors.start(folder, ADDRESS, name="again", shards=1, replicas=2)
        with pytest.raises(ClusterError, match="no cluster 'again'"):
            actors.find("again")
    finally:
        nodes.uncover(folder)
    for row in replicas().values():
        if row.state != "serving":
            os.kill(row.process or 0, signal.SIGKILL)
    until(all_serve)
    check(served.search(queries, 100), due)


def test_a_killed_encoding_job_goes_on(
    nodes: TwoNodes, tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(48):
        tilt = np.add.outer(np.arange(1200) * (number + 1), np.arange(1200)) % 256
        Image.fromarray(tilt.astype(np.uint8)).save(pictures / f"{number:02}.png")
    (pictures / "07-bad.png").write_bytes(b"no picture")
    (pictures / "33-bad.jpg").write_bytes(b"")
    bundle = make_bundle().path
    out = tmp_path / "job"
    command = [*METAH, "encode", str(pictures), "--bundle", str(bundle), "--out", str(out)]
    command += ["--address", ADDRESS, "--workers", "2", "--part", "4", "--json"]

    def parts() -> int:
        return len(list((out / "parts").glob("*.parquet")))

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: parts() >= 2 or first.poll() is not None)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert not (out / "codes.parquet").exists()
    time.sleep(1)
    kept = parts()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["codes"] == 48
    assert (facts["encoded_now"], facts["already_there"]) == (50 - 4 * kept, 4 * kept)
    assert [Path(e["path"]).name for e in facts["errors"]] == ["07-bad.png", "33-bad.jpg"]

    def run(*args: str) -> None:
        with pytest.raises(SystemExit) as end:
            console.run(cli, "metah-search", list(args))
        assert end.value.code == 0

    run("import", str(tmp_path / "one.index"), str(out / "codes.parquet"))
    run("add", str(tmp_path / "two.index"), str(pictures), "--bundle", str(bundle))
    with Index.open(tmp_path / "one.index") as one, Index.open(tmp_path / "two.index") as two:
        assert (one.fingerprint, one.model) == (two.fingerprint, two.model)
        ids = two.ids()
        assert one.ids().tolist() == ids.tolist()
        assert one.paths(ids) == two.paths(ids)
        assert one.codes(ids).tobytes() == two.codes(ids).tobytes()


def test_a_cut_link(
    nodes: TwoNodes, served: ClusterIndex, queries: np.ndarray, due: Matches
) -> None:
    nodes.cut()
    try:
        for _ in range(20):
            check(served.search(queries, 100), due)
    finally:
        nodes.mend()
    until(all_serve)
    check(served.search(queries, 100), due)


def test_a_lost_node(
    nodes: TwoNodes, served: ClusterIndex, queries: np.ndarray, due: Matches
) -> None:
    nodes.lose_other()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        check(served.search(queries, 100), due)
    again = actors.find("two", policy=PATIENT)
    check(again.search(queries, 100), due)
    assert actors.stop("two") == 4
    with pytest.raises(ClusterError, match="no cluster 'two' runs here"):
        actors.find("two")

"""metah-search cluster: one index on many machines, and encoding on all of them, by Ray."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from metah_runtime.cli import console
from metah_runtime.cli.model_options import domain_option, model_options
from metah_runtime.domain import Domain
from metah_runtime.errors import ConfigError, DataError

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=console.Group)
def cluster() -> None:
    """Serve an index from many machines, and encode on all of them, with Ray.

    Needs the extra 'ray' and a running Ray cluster that asks for its token. The same METAH version
    and the same files at the same places must be on every machine.
    """


def _where(command: F) -> F:
    for option in (
        click.option("--address", help="HOST:PORT of Ray's head [default: this machine's cluster]"),
        click.option("--name", default="metah", show_default=True, help="of the cluster"),
    ):
        command = option(command)
    return command


def _connect(address: str | None) -> str:
    from metah_runtime.cluster.access import connect

    return connect(address)


@cluster.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--shards", type=int, default=1, show_default=True, help="pieces of the index")
@click.option("--replicas", type=int, default=2, show_default=True, help="of each shard")
@click.option("--threads", type=int, default=1, show_default=True, help="CPUs of a replica")
@_where
@console.json_option
def start(
    index: Path,
    shards: int,
    replicas: int,
    threads: int,
    name: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Serve the present state of INDEX by shards x replicas actors, until `stop`.

    INDEX must be at the same place on every node. The replicas of a shard are put on different
    nodes; one whose files are not those of this INDEX refuses to join, and then nothing starts.

    \b
    Examples:
      metah-search cluster start photos.index --shards 4 --replicas 2
    """
    from metah_runtime.cluster import actors

    served = actors.start(
        index,
        _connect(address),
        name=name,
        shards=shards,
        replicas=replicas,
        threads=threads,
    )
    if as_json:
        console.print_json(
            {
                "name": name,
                "index": index,
                "codes": len(served),
                "bits": served.bits,
                "detail_bits": served.code_format.detail_bits,
                "shards": shards,
                "replicas": replicas,
            }
        )
        return
    console.say(
        f"cluster {name!r} serves {len(served):,} codes of {served.code_format} of "
        f"{console.printable(index)}: {shards} shards x {replicas} replicas"
    )


@cluster.command()
@_where
@console.json_option
def status(name: str, address: str | None, as_json: bool) -> None:
    """Show every replica; exit 1 if one does not serve.

    \b
    Examples:
      metah-search cluster status
    """
    from dataclasses import asdict

    from metah_runtime.cluster import actors

    _connect(address)
    plan, rows = actors.status(name)
    well = all(row.state == "serving" for row in rows)
    if as_json:
        facts = {
            "name": name,
            "codes": len(plan),
            "bits": plan.manifest.bits,
            "detail_bits": plan.manifest.detail_bits,
            "fingerprint": plan.manifest.fingerprint,
            "generation": plan.manifest.generation,
            "plan": plan.digest,
            "shards": len(plan.shards),
            "ok": well,
        }
        console.print_json({**facts, "replicas": [asdict(row) for row in rows]})
    else:
        console.print_table(
            ["shard", "replica", "codes", "node", "process", "state"],
            [
                (
                    row.shard,
                    row.replica,
                    "-" if row.codes is None else f"{row.codes:,}",
                    (row.node or "-")[:12],
                    row.process or "-",
                    row.state,
                )
                for row in rows
            ],
            f"{name}: {len(plan):,} codes of {plan.manifest.code_format}, plan {plan.digest[:12]}",
        )
    if not well:
        from metah_runtime.errors import ClusterError

        count = sum(row.state != "serving" for row in rows)
        raise ClusterError(f"{count} of {len(rows)} replicas do not serve")


@cluster.command()
@_where
@console.json_option
def stop(name: str, address: str | None, as_json: bool) -> None:
    """Stop all replicas of a cluster. The index on disk is not touched.

    \b
    Examples:
      metah-search cluster stop
    """
    from metah_runtime.cluster import actors
    from metah_runtime.errors import ClusterError

    _connect(address)
    count = actors.stop(name)
    if not count:
        raise ClusterError(f"no cluster {name!r} runs here")
    if as_json:
        console.print_json({"name": name, "stopped": count})
        return
    console.say(f"stopped {count} replicas of cluster {name!r}")


@cluster.command()
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--code", "codes", multiple=True, metavar="HEX", help="search by a code instead")
@click.option("-k", "k", type=int, help="give the K nearest [default: 10]")
@click.option("--radius", type=int, help="give all within this many bits of the hash code")
@click.option("--partial", is_flag=True, help="answer over the shards that can be reached")
@click.option("--deadline", type=float, default=2.0, show_default=True, help="seconds to wait")
@click.option(
    "--hedge",
    type=float,
    default=0.15,
    show_default=True,
    help="silence, in seconds, before the next replica is asked",
)
@model_options
@domain_option("IMAGES")
@_where
@console.json_option
@click.option(
    "--html", type=click.Path(path_type=Path), help="write a gallery: one self-contained page"
)
def query(
    images: Sequence[Path],
    codes: Sequence[str],
    k: int | None,
    radius: int | None,
    partial: bool,
    deadline: float,
    hedge: float,
    bundle: Path | None,
    device: str,
    threads: int | None,
    domain: Domain,
    name: str,
    address: str | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Find the codes nearest to those of IMAGES: the answer of `metah-search query`, or an error.

    With --partial shards that do not answer are left out; the answer says so.

    \b
    Examples:
      metah-search cluster query cat.jpg -k 10
      metah-search cluster query --code 0f3a99c01277 --radius 2 --json
    """
    from metah_runtime.cli import query as local
    from metah_runtime.cluster import actors
    from metah_runtime.cluster.routing import HedgePolicy

    search = local.check_search(k, radius, images, codes)
    local.check_html(html)
    policy = HedgePolicy(deadline=deadline, hedge=hedge)
    _connect(address)
    served = actors.find(name, policy=policy)
    label = Path(f"cluster {name}")
    packed, good, bad = local.query_codes(
        served, label, images, codes, bundle, device, threads, domain=domain
    )
    store = served.reachable() if partial else served
    found = local.find(store, good, packed, search)
    missing = sorted(getattr(store, "missing", ()))
    if missing:
        shown = ", ".join(map(str, missing))
        console.warn(f"partial answer: shards {shown} of {len(served.plan.shards)} are missing")
    head = {"cluster": name, "complete": not missing, "missing": missing}
    local.answer(store, label, found, bad, search, html, head if as_json else None)


@cluster.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--list", "listed", metavar="FILE", help="take paths from FILE, one a line")
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="model bundle")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder of the job")
@click.option("--workers", type=int, help="processes [default: as the free CPUs allow]")
@click.option("--cpus", type=int, default=1, show_default=True, help="CPUs of a worker")
@click.option("--batch", type=int, default=64, show_default=True, help="images a model run")
@click.option("--part", type=int, default=1024, show_default=True, help="images kept at once")
@click.option("--strict", is_flag=True, help="exit 1 if any file could not be used")
@click.option("--address", help="HOST:PORT of Ray's head [default: this machine's cluster]")
@console.json_option
def encode(
    paths: Sequence[Path],
    listed: str | None,
    bundle: Path,
    out: Path,
    workers: int | None,
    cpus: int,
    batch: int,
    part: int,
    strict: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Encode the images in PATHS on all nodes; a job that was killed goes on where it was.

    The folder OUT, on storage that all nodes share, keeps one durable file a part. At the end it
    has codes.parquet, in the order of `metah-search add`, and errors.csv. A file is known by its
    path: more PATHS and the same OUT encode what is new.

    \b
    metah-search cluster encode photos/ --bundle model.bundle --out job
    metah-search import photos.index job/codes.parquet
    """
    from dataclasses import asdict

    from metah_runtime.cli import add
    from metah_runtime.cluster import parts
    from metah_runtime.cluster.access import require_token
    from metah_runtime.cluster.encoding import WorkerOptions
    from metah_runtime.cluster.encoding import encode as run
    from metah_runtime.model.encoder import Encoder

    if not paths and listed is None:
        raise ConfigError("nothing to encode; fix: name files or folders, or give --list FILE")
    plan = WorkerOptions(count=workers, cpus=cpus, batch=batch, part=part)
    encoder = Encoder.open(bundle)
    wanted = [*paths, *([] if listed is None else add.read_list(listed))]
    names, missing, left_out = add.list_images(wanted)
    if left_out.counts:
        console.note(f"left out: {left_out.text()}")
    if not names:
        raise DataError("no image in what was given; fix: name files or a folder")
    listing = parts.FileListing.of(names)
    where = bundle.resolve()
    job = parts.Job(
        fingerprint=encoder.fingerprint, model=where.name, **asdict(encoder.code_format)
    )
    folder = out.absolute()
    parts.open_job(folder, job)
    require_token(_connect(address))
    with console.progress_bar("encoding", len(listing), "images") as advance:
        advance(len(listing) - len(listing.without(parts.done_ids(folder))))
        done = run(where, folder, job, listing, plan, advance)
    count, bad = parts.finish(folder, listing, job)
    bad = [*missing, *bad]
    add.write_errors(folder / "errors.csv", bad)
    add.warn_of(bad, len(listing), folder / "errors.csv")
    if as_json:
        console.print_json(
            {
                "out": out,
                "codes": count,
                "encoded_now": done,
                "already_there": len(listing) - done,
                "errors": [{"path": item.path, "reason": item.reason} for item in bad],
                "bits": job.bits,
                "detail_bits": job.detail_bits,
            }
        )
    else:
        console.say(
            f"{count:,} codes of {job.code_format} in {console.printable(out / parts.CODES)}; "
            f"{done:,} files encoded now, {len(listing) - done:,} were there already"
        )
    if strict and bad:
        raise DataError(f"{len(bad)} of {len(listing)} files could not be used (--strict)")

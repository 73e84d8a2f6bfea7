"""The sub-commands of metah-export; heavy libraries are imported when a command runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metah_runtime import files, schema
from metah_runtime.cli import console
from metah_runtime.errors import ConfigError, ParityError
from metah_runtime.model.bundle import ENGINE_KINDS, PRECISIONS

if TYPE_CHECKING:
    from metah_export.parity import Parity
    from metah_export.to_engine import EngineConfig

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_threads = click.option("--threads", type=int, help="CPU threads  [default: all cores]")
_batch = click.option(
    "--batch",
    default="1:8:64",
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="Images a launch that the engine is built for.",
)
_targets = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="8.9",
    help="Compute capability to build for, once each; tensorrt-rtx  [default: portable]",
)
_tf32 = click.option("--tf32", is_flag=True, help="Allow TF32, which flips bits of fp32 models.")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the bundle.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="TOML file: fields of the configuration, [calibration], [limits.PRECISION].",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="  [default: fp32]")
@click.option("--images", type=int, help="Images to compare codes on  [default: 2000]")
@click.option("--seed", type=int, help="Of the choice of these images  [default: 0]")
@click.option(
    "--calibration-images", type=int, help="Images to calibrate int8 and fp8 on  [default: 512]"
)
@click.option(
    "--calibration-method",
    type=click.Choice(("minmax", "entropy", "percentile")),
    help="How int8 finds its ranges  [default: minmax]",
)
@click.option("--licence", metavar="TEXT", help="Licence of the model, for its model card.")
@click.option(
    "--engine",
    "kind",
    type=click.Choice(("none", *ENGINE_KINDS, "auto")),
    default="none",
    show_default=True,
    help="TensorRT engine to build into the bundle.",
)
@_batch
@_targets
@_tf32
@_threads
@_json
def build(
    run: Path,
    out: Path,
    file: Path | None,
    kind: str,
    batch: str,
    targets: tuple[str, ...],
    tf32: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Export the training run RUN to a new bundle.

    The codes of the exported model are compared with those of the trained one on real images of
    both domains. If they differ by more than the limit, nothing is written and the exit code is 1.

    \b
    Examples:
      metah-export build runs/metah --out digits.bundle
      metah-export build runs/metah --out small.bundle --precision int8
    """
    from metah_export import build as stage
    from metah_export import config as configs

    config = configs.load(file, options)
    engine = None if kind == "none" else _engine_config(kind, batch, targets, tf32)
    bundle, parity = stage.build(run, out, config, engine=engine)
    if as_json:
        console.print_json(
            {"bundle": out, "fingerprint": bundle.fingerprint, "parity": parity.to_dict()}
        )
        return
    size = bundle.manifest.files["model.onnx"].size
    console.say(f"{out}: {bundle.bits} bits, {config.precision}, model {size / 1e6:.2f} MB")
    console.say(f"fingerprint {bundle.fingerprint}")
    _print_parity(parity)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@_threads
@_json
def verify(bundle: Path, device: str, threads: int | None, as_json: bool) -> None:
    """Check BUNDLE here: digests, ONNX rules, one batch, and parity with the stored truth.

    \b
    Examples:
      metah-export verify digits.bundle
    """
    from metah_export import verify as stage

    found = stage.verify(bundle, device=device, threads=threads)
    if as_json:
        console.print_json(
            {
                "bundle": bundle,
                "fingerprint": found.bundle.fingerprint,
                "opset": found.opset,
                "device": found.device,
                "parity": None if found.parity is None else found.parity.to_dict(),
            }
        )
        return
    count = len(found.bundle.manifest.files)
    console.say(
        f"{bundle}: {count} files match, operator set {found.opset}, runs on {found.device}"
    )
    for entry in found.bundle.manifest.engines:
        measured = "parity not measured" if entry.parity is None else "parity kept"
        click.echo(
            f"{entry.file}: {entry.kind} {entry.builder}, for {', '.join(entry.targets)}, "
            f"batch {':'.join(map(str, entry.batch))}, {measured}"
        )
    if found.parity is None:
        console.warn("the bundle holds no truth.npz: codes were not compared")
    else:
        _print_parity(found.parity)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    "kind",
    type=click.Choice((*ENGINE_KINDS, "auto")),
    default="auto",
    show_default=True,
    help="Builder; auto: tensorrt where it and a GPU are, else tensorrt-rtx.",
)
@_batch
@_targets
@_tf32
@_json
def engine(
    bundle: Path, kind: str, batch: str, targets: tuple[str, ...], tf32: bool, as_json: bool
) -> None:
    """Build a TensorRT engine from BUNDLE and add it, on the machine that will run it.

    Where a GPU can run it, its codes are compared with the stored truth; over the limit, the
    bundle stays as it was and the exit code is 1.

    \b
    Examples:
      metah-export engine digits.bundle --engine tensorrt-rtx --batch 1,8,64
    """
    from metah_export import engine as stage

    opened, entry, reason = stage.engine(bundle, _engine_config(kind, batch, targets, tf32))
    size = opened.manifest.files[entry.file].size
    if as_json:
        console.print_json({"bundle": bundle, "size": size, **schema.to_json(entry)})
    else:
        click.echo(
            f"{bundle}: {entry.file}, {size / 1e6:.2f} MB, {entry.kind} {entry.builder}, "
            f"for {', '.join(entry.targets)}, batch {':'.join(map(str, entry.batch))}"
        )
    if reason:
        console.warn(f"parity of the engine is not measured: {reason}")


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="For ONNX files: cpu or cuda.")
@click.option("--batches", default="1,8,64", show_default=True, help="Batch sizes to time.")
@click.option("--seconds", default=1.0, show_default=True, help="Measuring time of each size.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a page with plots.")
@_threads
@_json
def compare(
    bundles: tuple[Path, ...],
    device: str,
    batches: str,
    seconds: float,
    page: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare BUNDLES on this machine: size, flipped bits, MAP and speed of each artefact.

    Codes are compared with the truth stored in each bundle. The exit code is 1 if a limit is
    broken.

    \b
    Examples:
      metah-export compare digits.bundle small.bundle --html compare.html
    """
    from metah_export import compare as stage
    from metah_export.compare_page import page as make_page

    found = stage.compare(
        bundles,
        device=device,
        batches=_sizes("batches", batches),
        seconds=seconds,
        threads=threads,
    )
    if found.runs > 1:
        console.warn(f"the bundles come from {found.runs} training runs")
    if page is not None:
        files.write_bytes(page, make_page(found).encode())
    if as_json:
        console.print_json(schema.to_json(found))
    else:
        console.print_table(*stage.table(found))
        for row in found.rows:
            if row.note:
                click.echo(f"{row.bundle} {row.artefact}: {row.note}")
    broken = [f"{row.bundle} {row.artefact}: {row.problem}" for row in found.rows if row.problem]
    if broken:
        raise ParityError("; ".join(broken))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--repo", required=True, type=click.Path(path_type=Path), help="Model repository.")
@click.option("--name", default="metah", show_default=True, help="Name of the model.")
@click.option(
    "--backend",
    type=click.Choice(("onnxruntime", "tensorrt")),
    default="onnxruntime",
    show_default=True,
    help="tensorrt serves the bundle's engines of kind tensorrt.",
)
@click.option(
    "--instances",
    type=click.Choice(("cpu", "gpu")),
    default="gpu",
    show_default=True,
    help="Where the server runs it.",
)
@click.option("--count", default=1, show_default=True, help="Instances.")
@click.option("--max-batch", default=64, show_default=True, help="Largest batch of a launch.")
@click.option("--preferred", default="8,64", show_default=True, help="Batch sizes to gather.")
@click.option("--delay-us", default=500, show_default=True, help="How long to gather them.")
@_json
def triton(
    bundle: Path,
    repo: Path,
    name: str,
    backend: str,
    instances: str,
    count: int,
    max_batch: int,
    preferred: str,
    delay_us: int,
    as_json: bool,
) -> None:
    """Write BUNDLE as a model of a Triton Inference Server's model repository.

    \b
    Examples:
      metah-export triton digits.bundle --repo models/ --instances cpu
    """
    from metah_export import triton as stage

    config = stage.TritonConfig(
        name=name,
        backend=backend,
        instances=instances,
        count=count,
        max_batch=max_batch,
        preferred=_sizes("preferred", preferred),
        delay_us=delay_us,
    )
    folder = stage.triton(bundle, repo, config)
    if as_json:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        console.print_json({"bundle": bundle, **schema.to_json(config), "files": paths})
    else:
        console.say(str(folder))


def _sizes(name: str, text: str) -> tuple[int, ...]:
    """Parse whole numbers like 1,8,64."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"{name} must be whole numbers like 1,8,64, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _engine_config(kind: str, batch: str, targets: tuple[str, ...], tf32: bool) -> "EngineConfig":
    from metah_export.to_engine import EngineConfig, choose_kind, parse_batch

    sizes = parse_batch(batch)
    chosen = choose_kind(kind)
    return EngineConfig(kind=chosen, batch=sizes, targets=targets, tf32=tf32)


def _print_parity(parity: "Parity") -> None:
    rows = [
        ("images (source + target)", f"{parity.source_images} + {parity.target_images}"),
        ("flipped bits", f"{parity.flips} of {parity.images * parity.bits}"),
        (f"flips with |logit| > {parity.limits.margin:g}", str(parity.far_flips)),
        ("largest |logit| at a flip", f"{parity.worst_flip:.3g}"),
        ("largest logit error", f"{parity.max_error:.3g}"),
        ("images by flipped bits (0, 1, ..)", ", ".join(map(str, parity.hamming))),
    ]
    if parity.map_h2 is not None and parity.map_delta is not None:
        rows.append(("MAP@H2 (change)", f"{parity.map_h2:.4f} ({parity.map_delta:+.4f})"))
    if parity.top10_overlap is not None:
        rows.append(("ten nearest that stay", f"{parity.top10_overlap:.2%}"))
    console.print_table(("parity", parity.runner), rows)

"""The sub-commands of metah-export; heavy libraries are imported when a command runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metah_runtime import console
from metah_runtime.bundle import PRECISIONS
from metah_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from metah_export.parity import Parity

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_threads = click.option("--threads", type=int, help="CPU threads  [default: all cores]")


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
@_threads
@_json
def build(run: Path, out: Path, file: Path | None, as_json: bool, **options: Any) -> None:
    """Export the training run RUN to a new bundle.

    The codes of the exported model are compared with those of the trained one on real images of
    both domains. If they differ by more than the limit, nothing is written and the exit code is 1.
    """
    try:
        from metah_export import build as stage
        from metah_export import config as configs
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "export") from error
    config = configs.load(file, options)
    bundle, parity = stage.build(run, out, config)
    if as_json:
        console.print_json(
            {"bundle": out, "fingerprint": bundle.fingerprint, "parity": parity.to_dict()}
        )
        return
    size = bundle.manifest.files["model.onnx"].size
    click.echo(f"{out}: {bundle.bits} bits, {config.precision}, model {size / 1e6:.2f} MB")
    click.echo(f"fingerprint {bundle.fingerprint}")
    _print_parity(parity)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@_threads
@_json
def verify(bundle: Path, device: str, threads: int | None, as_json: bool) -> None:
    """Check BUNDLE here: digests, ONNX rules, one batch, and parity with the stored truth."""
    try:
        from metah_export import verify as stage
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "onnx", "export") from error
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
    files = len(found.bundle.manifest.files)
    click.echo(f"{bundle}: {files} files match, operator set {found.opset}, runs on {found.device}")
    if found.parity is None:
        console.warn("the bundle holds no truth.npz: codes were not compared")
    else:
        _print_parity(found.parity)


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

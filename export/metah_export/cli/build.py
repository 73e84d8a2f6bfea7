"""metah-export build: export a training run to a bundle."""

import os
from pathlib import Path
from typing import Any

import click

from metah_export.cli import options
from metah_export.cli.parity_table import print_parity
from metah_runtime import schema
from metah_runtime.cli import console
from metah_runtime.model.manifest import ENGINE_KINDS, PRECISIONS


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
@click.option(
    "--exclude",
    multiple=True,
    metavar="LAYER",
    help="Layer of the backbone that stays fp32, as a refusal names it; may be repeated.",
)
@click.option(
    "--auto",
    is_flag=True,
    help="Keep the layers that flip the most bits in fp32, where a limit is broken.",
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
@options.batch
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="cpu|tensorrt|8.9",
    help="What the model is for: cpu or tensorrt choose the form of int8, a compute capability the "
    "GPU of the engine; may be repeated  [default: by --engine]",
)
@options.tf32
@options.threads
@console.json_option
def build(
    run: Path,
    out: Path,
    file: Path | None,
    kind: str,
    batch: str,
    targets: tuple[str, ...],
    tf32: bool,
    as_json: bool,
    exclude: tuple[str, ...],
    auto: bool,
    **settings: Any,
) -> None:
    """Export the training run RUN to a new bundle.

    The codes of the exported model are compared with those of the trained one on real images of
    both domains. If they differ by more than the limit, nothing is written and the exit code is 1.

    \b
    Examples:
      metah-export build runs/metah --out digits.bundle
      metah-export build runs/metah --out small.bundle --precision int8
      metah-export build runs/metah --out gpu.bundle --precision int8 --target tensorrt
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of torch that wait do not spin
    from metah_export import build as stage
    from metah_export import config as configs

    target, capabilities = options.split_targets(targets)
    settings |= {"target": target, "exclude": exclude or None, "auto": auto or None}
    config = configs.load(file, settings)
    engine = None if kind == "none" else options.engine_config(kind, batch, capabilities, tf32)
    bundle, parity = stage.build(
        run, out, config, engine=engine, progress=console.progress_bar, warn=console.warn
    )
    if as_json:
        console.print_json(
            {"bundle": out, "fingerprint": bundle.fingerprint, "parity": schema.to_json(parity)}
        )
        return
    size = bundle.manifest.files["model.onnx"].size
    console.say(f"{out}: {bundle.bits} bits, {config.precision}, model {size / 1e6:.2f} MB")
    console.say(f"fingerprint {bundle.fingerprint}")
    print_parity(parity)

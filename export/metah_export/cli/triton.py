"""metah-export triton: write a Triton model repository."""

from pathlib import Path

import click

from metah_export.cli import options
from metah_runtime import schema
from metah_runtime.cli import console
from metah_runtime.domain import Domain


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
@options.domain
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
@console.json_option
def triton(
    bundle: Path,
    repo: Path,
    name: str,
    backend: str,
    domain: Domain,
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
        domain=domain,
        instances=instances,
        count=count,
        max_batch=max_batch,
        preferred=options.batch_sizes("preferred", preferred),
        delay_us=delay_us,
    )
    folder = stage.triton(bundle, repo, config)
    if as_json:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        console.print_json({"bundle": bundle, **schema.to_json(config), "files": paths})
    else:
        console.say(str(folder))

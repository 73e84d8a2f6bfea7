"""Options that several sub-commands of metah-export share, and how their texts are parsed."""

from typing import TYPE_CHECKING

import click

from metah_runtime.domain import DOMAINS, TARGET
from metah_runtime.errors import ConfigError

if TYPE_CHECKING:
    from metah_export.to_engine import EngineConfig

domain = click.option(
    "--domain",
    type=click.Choice(DOMAINS),
    default=TARGET,
    show_default=True,
    help="Whose images it encodes; source: for a bundle that encodes both apart.",
)
threads = click.option("--threads", type=int, help="CPU threads  [default: all cores]")
batch = click.option(
    "--batch",
    default="1:8:64",
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="Images per launch: the smallest, usual and largest batch of the engine.",
)
targets = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="8.9",
    help="Compute capability to build for, may be repeated; tensorrt-rtx  [default: portable]",
)
tf32 = click.option("--tf32", is_flag=True, help="Allow TF32, which flips bits of fp32 models.")


def split_targets(targets: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Return (target of int8 or None, compute capabilities) of --target; raise ConfigError."""
    forms = [target for target in targets if target in ("cpu", "tensorrt")]
    if len(forms) > 1:
        raise ConfigError(f"--target takes one of cpu and tensorrt, got {', '.join(forms)}")
    capabilities = tuple(target for target in targets if target not in forms)
    return (forms[0] if forms else None), capabilities


def engine_config(kind: str, batch: str, targets: tuple[str, ...], tf32: bool) -> "EngineConfig":
    """Return the settings of an engine; kind 'auto' is resolved on this machine."""
    from metah_export.to_engine import EngineConfig, choose_kind, parse_batch

    sizes = parse_batch(batch)
    return EngineConfig(kind=choose_kind(kind), batch=sizes, targets=targets, tf32=tf32)


def batch_sizes(name: str, text: str) -> tuple[int, ...]:
    """Parse whole numbers like 1,8,64; raise ConfigError that names the option."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ConfigError(f"{name} must be whole numbers like 1,8,64, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))

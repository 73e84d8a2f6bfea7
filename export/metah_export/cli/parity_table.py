"""The table of a parity report, for people."""

from typing import TYPE_CHECKING

from metah_runtime.cli import console

if TYPE_CHECKING:
    from metah_export.parity import Parity


def print_parity(parity: "Parity") -> None:
    """Print how codes compare with those of the trained model."""
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

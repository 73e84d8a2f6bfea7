"""The table of a parity report, for people."""

from typing import TYPE_CHECKING

from metah_runtime.cli import console
from metah_runtime.domain import TARGET

if TYPE_CHECKING:
    from metah_export.parity import Parity
    from metah_runtime.domain import Domain


def print_parity(parity: "Parity", domain: "Domain" = TARGET) -> None:
    """Print how codes compare with those of the trained model for images of a domain."""
    detail = parity.detail
    rows = [
        ("images (source + target)", f"{parity.source_images} + {parity.target_images}"),
        ("flipped bits", f"{parity.flips} of {parity.images * parity.bits}"),
        (f"flips with |logit| > {parity.limits.margin:g}", str(parity.far_flips)),
        ("largest |logit| at a flip", f"{parity.worst_flip:.3g}"),
        ("largest logit error", f"{parity.max_error:.3g}"),
        ("images by flipped bits (0, 1, ..)", ", ".join(map(str, parity.hamming))),
    ]
    if detail is not None:
        rows += [
            ("detail code: flipped bits", f"{detail.flips} of {parity.images * detail.bits}"),
            (f"flips with |logit| > {detail.margin:.3g}", str(detail.far_flips)),
            ("largest |logit| at a flip", f"{detail.worst_flip:.3g}"),
            ("images by flipped bits (0, 1, ..)", ", ".join(map(str, detail.hamming))),
        ]
    if parity.map_h2 is not None and parity.map_delta is not None:
        rows.append(("MAP@H2 (change)", f"{parity.map_h2:.4f} ({parity.map_delta:+.4f})"))
    if parity.map_delta_interval is not None and parity.flips:
        low, high = parity.map_delta_interval
        rows.append(("95 % interval of the change", f"{low:+.4f} to {high:+.4f}"))
    if parity.top10_overlap is not None:
        rows.append(("ten nearest that stay", f"{parity.top10_overlap:.2%}"))
    title = "parity" if domain == TARGET else f"parity, images of the {domain}"
    console.print_table((title, parity.runner), rows)

"""Which layers flip the bits of a lowered model, and leaving the worst of them in fp32."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metah_export.parity import Parity
from metah_export.precision import FIRST_LOOK, Lowering, forms
from metah_export.reference_set import ReferenceSet
from metah_runtime.errors import ParityError
from metah_runtime.reporting import Progress, Warn, no_progress, python_warning

NAMED = 4
"""Layers that a refusal names, at most."""


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """What lowering one layer alone does. share: its part of the squared error of all layers."""

    layer: str
    share: float


def rank_layers(
    lowering: Lowering,
    reference: ReferenceSet,
    *,
    skip: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress = no_progress,
) -> list[LayerError]:
    """Lower each layer alone and measure the error of the logits; the worst comes first.

    A few images of the reference set are run. skip: layers that stay fp32 anyway.
    """
    sample = reference.sample(FIRST_LOOK)
    layers = [layer for layer in lowering.layers if layer not in skip]
    errors: list[float] = []
    with progress("finding the layers that flip bits", len(layers), "layers") as advance:
        for layer in layers:
            logits = _logits(lowering, lowering.alone(layer), sample, threads)
            errors.append(float(np.square(logits - sample.logits).mean()))
            advance(1)
    total = sum(errors) or 1.0
    order = np.argsort(errors, kind="stable")[::-1]
    return [LayerError(layer=layers[i], share=errors[i] / total) for i in order]


def lower_within_limits(
    lowering: Lowering,
    reference: ReferenceSet,
    check: Callable[[bytes], Parity],
    *,
    exclude: Sequence[str] = (),
    auto: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
) -> tuple[bytes, Parity, tuple[str, ...]]:
    """Return (model, parity, layers left in fp32) of a lowered model that ``check`` accepts.

    exclude: layers that stay fp32; auto: leave out the worst of the others too, twice as many at
    each try, up to half of them. Raises ParityError naming the worst layers and the options that
    leave them out.
    """
    left = tuple(exclude)
    model = lowering.model(left)
    try:
        return model, check(model), left
    except ParityError as caught:
        error = caught
    ranked = rank_layers(lowering, reference, skip=left, threads=threads, progress=progress)
    count = 1
    while auto and count <= len(ranked) // 2:
        left = (*exclude, *(each.layer for each in ranked[:count]))
        model = lowering.model(left)
        try:
            result = check(model)
        except ParityError as caught:
            error = caught
            count *= 2
            continue
        warn(f"layers kept in fp32, for they flip the most bits: {', '.join(left)}")
        return model, result, left
    worst = [each for each in ranked[:NAMED] if each.share > 0]
    named = ", ".join(f"{each.layer} ({each.share:.0%})" for each in worst)
    options = " ".join(f"--exclude {each.layer}" for each in worst)
    tried = f"; with the worst {count // 2} layers in fp32 too" if auto else ""
    raise ParityError(
        f"{error}{tried}; most of the error comes from {named}; fix: {options}"
        + ("" if auto else ", or --auto, or limits of your own in --config")
    ) from error


def _logits(
    lowering: Lowering, model: bytes, sample: ReferenceSet, threads: int | None
) -> NDArray[np.float32]:
    """Run the last of the forms of a model: of fp16 and bf16 the one that rounds most."""
    shape = sample.images.shape[1:]
    *_, (_, runner) = forms(
        model,
        lowering.precision,
        bits=sample.bits,
        detail_bits=sample.code_format.detail_bits,
        image_shape=(shape[0], shape[1], shape[2]),
        threads=threads,
    )
    return runner.run(sample.images)[1]

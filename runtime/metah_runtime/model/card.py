"""The model card: a page for people, made from nothing but what the bundle's manifest says.

It is written into the bundle as MODEL_CARD.md and listed in the manifest with its digest, as every
other file. A fact that the manifest does not hold is said to be missing; none is made up.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metah_runtime.codes import CodeFormat
from metah_runtime.images.formats import FORMATS, MAX_PIXELS
from metah_runtime.model.manifest import BundleManifest

FILE = "MODEL_CARD.md"
UNSTATED = "not stated"
SHOWN_CLASSES = 40

_SCORES = {
    "map_h2": "MAP within the ball",
    "map_h2_tieavg": "MAP within the ball, mean over orders of ties",
    "precision_h2": "precision within the ball",
    "recall_h2": "recall within the ball",
    "empty_balls": "queries with an empty ball",
    "ball_size": "images in a ball",
    "map_full": "MAP of the whole ranking",
    "map_r": "MAP@R",
    "pr_area": "area of pooled precision and recall",
}
_RUN = (
    ("method", "method"),
    ("backbone", "backbone"),
    ("weights", "weights that the backbone began with"),
    ("seed", "seed"),
)
_SPLIT = (
    ("queries_per_class", "queries of each class", None),
    ("query_fraction", "part of the labelled target images that queries", None),
    ("valid_fraction", "part of each source class held out", UNSTATED),
    ("target_train", "unlabelled target images", "all, or as published"),
)
"""Setting of the split, its name, and what is said where it is not set (None: nothing)."""


def render(manifest: BundleManifest) -> str:
    """Return the card of a bundle as Markdown; the same manifest gives the same text."""
    training = manifest.training
    config = _mapping(training.get("config"))
    title = f"{_text(config.get('method'))}, {_bits(manifest.code_format)} bits"
    parts = [
        f"# Model card: {title}",
        "Made from the bundle's `manifest.json` when the bundle was written; the manifest holds "
        "this file's SHA-256. What the manifest does not hold is left out or said to be missing.",
        "## Model",
        _table(_model(manifest, config)),
        "## Data",
        *_data(training, config),
        "## How an image is read",
        _preprocessing(manifest),
        "## Scores",
        *_scores(training.get("evaluation")),
        "## Export",
        _export(manifest),
        "## Limits",
        _limits(manifest),
        "## Licence",
        _licence(training.get("licence")),
        "## Versions",
        _table([(_text(name), _text(value)) for name, value in sorted(manifest.versions.items())]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _model(manifest: BundleManifest, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, label in _RUN:
        if key in config:
            value = config[key]
            if key == "weights" and value is None:
                value = manifest.training.get("pretrained")
            yield label, "none" if value is None else _text(value)
    yield "code", f"{_code(manifest.code_format)}; bit rule {_text(manifest.bit_rule)}"
    if manifest.detail_bits:
        weight = "" if manifest.code_weight == 1 else f"{manifest.code_weight} x "
        yield "distance", f"{weight}bits of hash code that differ + bits of detail code that differ"
    yield "bit order", _text(manifest.bit_order)
    made_for = _mapping(manifest.training.get("calibration")).get("target")
    precision = _text(manifest.precision)
    yield (
        "precision inside the model",
        f"{precision}, for {_text(made_for)}" if made_for else precision,
    )
    yield "ONNX operator set", str(manifest.opset)
    for domain, file in manifest.models.items():
        also = "" if len(manifest.models) == 1 else f", for images of the {domain}"
        yield file, f"{manifest.files[file].size:,} bytes{also}"
    yield "fingerprint", f"`{manifest.fingerprint}`"
    yield "training run", _text(manifest.training.get("run"))


def _data(training: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    split = _mapping(config.get("split"))
    rows = [
        ("data", _text(training.get("data"))),
        ("direction (source to target)", _text(training.get("direction"))),
    ]
    rows += [
        (label, (absent or "") if split[key] is None else _text(split[key]))
        for key, label, absent in _SPLIT
        if key in split and (absent is not None or split[key] is not None)
    ]
    skipped = config.get("skipped")
    if isinstance(skipped, Sequence) and not isinstance(skipped, str) and skipped:
        rows.append(("images left out, for they could not be read", str(len(skipped))))
    names = training.get("class_names")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        return [_table([*rows, ("classes", UNSTATED)])]
    shown = ", ".join(_text(name) for name in names[:SHOWN_CLASSES])
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return [_table([*rows, ("classes", str(len(names)))]), f"Classes: {shown}{more}."]


def _preprocessing(manifest: BundleManifest) -> str:
    spec = manifest.preprocess
    colour = "grey (ITU-R 601)" if spec.channels == 1 else "RGB"
    return (
        f"Formats: {', '.join(FORMATS)}; at most {MAX_PIXELS:,} pixels; of an animation the first "
        f"frame. Turned upright by EXIF, flattened on the colour {spec.background} where "
        f"transparent, converted to {colour}, resized to {spec.height} x {spec.width} (height x "
        f"width) by {spec.resample} as Pillow does it (antialiased, fixed point), across, then "
        "down, without keeping the aspect ratio; a JPEG of at least four times this size is "
        "decoded at 1/2, 1/4 or 1/8 scale. Colour profiles are ignored. Normalisation is part of "
        "the model."
    )


def _scores(evaluation: Any) -> list[str]:
    """Render the scores that ``metah-train evaluate`` left in the run."""
    if evaluation is None:
        return ["Not evaluated: the run held no evaluation when it was exported."]
    unscored = _mapping(evaluation).get("unscored")
    if unscored is not None:
        return [f"Not scored: {_text(unscored)}."]
    found, held = (
        _mapping(_mapping(evaluation).get(key)) for key in ("metrics", "source_validation")
    )
    source = " of the source" if _mapping(evaluation).get("database") == "source" else ""
    target = (
        f"On the target domain of {_text(_mapping(evaluation).get('data'))}, "
        f"{_text(_mapping(evaluation).get('direction'))}: {_text(found.get('queries'))} queries "
        f"against a database of {_text(found.get('database'))} images{source}, Hamming radius "
        f"{_text(found.get('radius'))}. Images with a common label are relevant to each other. "
        "Every query counts, one with an empty ball as 0. The column of the held-out source is the "
        "same on source images that did not train, of which every second one queries the others. "
        "The scores are those of the trained network before export."
    )
    names = {key: key.replace("_h2", f"_h{found.get('radius')}") for key in _SCORES}
    if names["map_h2"] not in found:  # an evaluation of an early version, of any radius
        names = {key: key for key in _SCORES}
    columns = {"target": found, "held-out source": held}
    if "cross" in _mapping(evaluation):
        columns["target queries in the source"] = _mapping(_mapping(evaluation)["cross"])
    rows = [
        (label, *(_number(part.get(name)) for part in columns.values()))
        for label, name in zip(_SCORES.values(), names.values(), strict=True)
        if name in found
    ]
    return [target, _table(rows, ("score", *columns))]


def _export(manifest: BundleManifest) -> str:
    found = _parity(manifest, manifest.parity)
    if "source" in manifest.domains:
        own = _parity(manifest, manifest.source_parity)
        found += f"\n\nThe model for images of the source: {own}"
    return found


def _parity(manifest: BundleManifest, parity: Mapping[str, Any]) -> str:
    if not {"flips", "images", "runner", "source_images", "target_images"} <= set(parity):
        return "The codes were not compared with those of the trained network."
    flips, total = parity["flips"], parity["images"] * manifest.bits
    text = (
        f"The codes were compared with those of the trained network on {parity['source_images']} "
        f"source and {parity['target_images']} target images, by {_text(parity['runner'])}: "
        f"{flips} of {total} bits differ."
    )
    detail = _mapping(parity.get("detail"))
    if isinstance(detail.get("flips"), int):
        total = parity["images"] * manifest.detail_bits
        text = text.removesuffix(" bits differ.") + (
            f" bits of the hash code and {detail['flips']} of {total} of the detail code differ."
        )
    if parity.get("map_h2") is not None and parity.get("map_h2_truth") is not None:
        text += (
            f" MAP within radius 2 on these images: {_number(parity['map_h2'])}, of the trained "
            f"network {_number(parity['map_h2_truth'])}; the sample is small, so it is no score "
            "of the model."
        )
    return text


def _limits(manifest: BundleManifest) -> str:
    lines = [
        "The scores hold for the data named above. On images of another kind nothing was measured.",
        "A code may be compared only with codes of the same fingerprint.",
        "A bit whose logit is near 0 is unsure: a small change of the image may flip it.",
        "Two images may share a code without being alike: there are "
        f"{_bits(manifest.code_format)} bits.",
    ]
    if manifest.precision != "fp32":
        lines.append(
            f"Inside the model numbers are {manifest.precision}: see the bits that differ above."
        )
    return "\n".join(f"- {line}" for line in lines)


def _bits(code: CodeFormat) -> str:
    return f"{code.bits} + {code.detail_bits}" if code.detail_bits else str(code.bits)


def _code(code: CodeFormat) -> str:
    if not code.detail_bits:
        return f"{code.bits} bits"
    return (
        f"{code.bits} bits of hash code + {code.detail_bits} bits of detail code, {code.width} "
        "bytes an image"
    )


def _licence(licence: Any) -> str:
    if licence is None:
        return "Not stated by whoever exported the model. The data may set terms of its own."
    return f"As stated by whoever exported the model, not checked: {_text(licence)}"


def _table(rows: Any, columns: Sequence[str] = ("fact", "value")) -> str:
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def _text(value: Any) -> str:
    """Return a value as one line of Markdown in which nothing is markup."""
    if value is None:
        return UNSTATED
    parts = []
    for letter in str(value):
        if unicodedata.category(letter)[0] == "C":
            parts.append("\N{REPLACEMENT CHARACTER}")
        elif letter in "\\`*_[]<|&~":
            parts.append(f"\\{letter}")
        else:
            parts.append(" " if letter.isspace() else letter)
    return "".join(parts)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return UNSTATED
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

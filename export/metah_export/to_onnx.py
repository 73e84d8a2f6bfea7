"""PyTorch -> ONNX: one file, uint8 images in, packed codes and logits out."""

import ast
import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from metah_export.onnx_rules import (
    BATCH,
    CODES,
    DETAILS,
    INPUT,
    IR_VERSION,
    LOGITS,
    MAX_BATCH,
    OPSET,
    check_model,
)
from metah_export.simplify import simplify
from metah_runtime.codes import check_bits
from metah_runtime.errors import BundleError, ConfigError, require

_SCOPES = "pkg.torch.onnx.name_scopes"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class CodeModel(nn.Module):
    """A hash model with its bits packed in the graph.

    code[j] = sum_i 2^(7-i) * [logits[8 j + i] > 0], the order of ``np.packbits``. The sum is exact
    in fp32, fp16 and bf16 (values up to 255), and every step is one that TensorRT has: it has
    neither bit shifts nor arithmetic on uint8. With detail_bits the model has a method ``outputs``,
    images -> (logits, logits of the detail code), and these are packed alike.
    """

    weights: Tensor

    def __init__(self, model: nn.Module, bits: int, detail_bits: int = 0) -> None:
        super().__init__()
        self.model = model
        self.groups, self.detail_groups = check_bits(bits) // 8, detail_bits // 8
        self.register_buffer("weights", 2.0 ** torch.arange(7, -1, -1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(n, H, W, C) uint8 -> codes (n, bits/8) uint8, logits (n, bits) float32.

        With detail_bits: codes, details (n, detail_bits/8) uint8, logits.
        """
        if not self.detail_groups:
            logits = self.model(images)
            return self._pack(logits, self.groups), logits
        logits, details = cast(Any, self.model).outputs(images)
        return self._pack(logits, self.groups), self._pack(details, self.detail_groups), logits

    def _pack(self, logits: Tensor, groups: int) -> Tensor:
        ones = (logits > 0).to(torch.float32).reshape(-1, groups, 8)
        return (ones * self.weights).sum(-1).to(torch.uint8)


def to_onnx(
    model: nn.Module,
    *,
    bits: int,
    detail_bits: int = 0,
    image_shape: tuple[int, int, int],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Export a hash model (images uint8 (n, H, W, C) -> logits (n, bits)) to one ONNX file.

    Input ``images`` uint8 [batch, H, W, C]; outputs ``codes`` uint8 [batch, bits/8] and ``logits``
    float32 [batch, bits], and with detail_bits ``details`` uint8 [batch, detail_bits/8] from the
    model's method ``outputs`` (see ``CodeModel``); the axis ``batch`` is free. Weights lie inside
    the file. The model's training mode is put back. Raises BundleError if the result breaks one of
    these rules, ConfigError if the model cannot be traced and MissingExtra without onnxscript.
    """
    require("onnxscript")
    wrapped = CodeModel(model, bits, detail_bits)
    modes = {module: module.training for module in wrapped.modules()}
    wrapped.eval()
    example = torch.zeros((2, *image_shape), dtype=torch.uint8)
    try:
        with torch.inference_mode():
            _check_logits(model, example, bits, detail_bits)
        with _quiet():
            program = torch.onnx.export(
                wrapped,
                (example,),
                input_names=[INPUT],
                output_names=[CODES, DETAILS, LOGITS] if detail_bits else [CODES, LOGITS],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                optimize=True,
                verify=False,
                verbose=False,
                dynamic_shapes={INPUT: {0: torch.export.Dim(BATCH, min=1, max=MAX_BATCH)}},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        lines = _COLOUR.sub("", str(cause)).strip().splitlines() or [type(cause).__name__]
        raise ConfigError(f"the model cannot be exported to ONNX: {lines[0]}") from error
    finally:
        for module, mode in modes.items():
            module.train(mode)
    if program is None:
        raise BundleError("torch.onnx.export returned nothing")
    proto = program.model_proto
    _name_parts(proto.graph)
    _tidy(proto)
    _cast_first(proto.graph)
    simplify(proto)
    for key, value in sorted((metadata or {}).items()):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    check_model(proto, bits=bits, detail_bits=detail_bits, image_shape=image_shape)
    opset = {entry.domain: entry.version for entry in proto.opset_import}[""]
    if opset != OPSET or proto.ir_version != IR_VERSION:
        raise BundleError(
            f"the exporter wrote operator set {opset} and file version {proto.ir_version}, "
            f"asked for {OPSET} and {IR_VERSION}; fix: install the pinned torch and onnxscript"
        )
    return bytes(proto.SerializeToString(deterministic=True))


def _check_logits(model: nn.Module, example: Tensor, bits: int, detail_bits: int) -> None:
    """Raise ConfigError unless a model maps two images to logits of both lengths."""
    if not detail_bits:
        found = [("logits", model(example), bits)]
    elif not callable(getattr(model, "outputs", None)):
        raise ConfigError(
            f"the model has no method outputs, images -> logits (n, {bits}), (n, {detail_bits}): "
            "it has no detail code; fix: detail_bits=0"
        )
    else:
        logits, details = cast(Any, model).outputs(example)
        found = [("logits", logits, bits), ("detail logits", details, detail_bits)]
    for name, values, width in found:
        if values.shape != (2, width) or values.dtype != torch.float32:
            raise ConfigError(
                f"the model must map 2 images to float32 {name} (2, {width}), "
                f"got {values.dtype} {tuple(values.shape)}"
            )


def _name_parts(graph: onnx.GraphProto) -> None:
    """Name each node PART/OPERATOR_PLACE by the sub-module of the model that it comes from.

    PART is the name of a child of the model (for a HashModel: backbone, head, detail), 'pixels' for
    what the model does itself, and 'pack' for the packing, which comes after the last child's node.
    Lowering precision goes by these names.
    """
    found = []
    for node in graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(_SCOPES, "[]")
        names = [str(name) for name in ast.literal_eval(scopes)][:-1]
        children = [name.split(".")[1] for name in names if name.startswith("model.")]
        found.append(children[0] if children else "pixels" if "model" in names else "")
    last = max((place for place, part in enumerate(found) if part), default=-1)
    for place, (node, part) in enumerate(zip(graph.node, found, strict=True)):
        node.name = f"{part or ('pixels' if place < last else 'pack')}/{node.op_type}_{place}"


def _tidy(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes for its own debugging: source lines, paths, module names."""
    graph = proto.graph
    del proto.metadata_props[:]
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""


def _cast_first(graph: onnx.GraphProto) -> None:
    """Turn Transpose(uint8) -> Cast into Cast -> Transpose: TensorRT moves no uint8 about."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for move in users.get(INPUT, []):
        after = users.get(move.output[0], [])
        if move.op_type != "Transpose" or [node.op_type for node in after] != ["Cast"]:
            continue
        cast = after[0]
        middle = move.output[0]
        first, second = onnx.NodeProto(), onnx.NodeProto()
        first.CopyFrom(cast)
        second.CopyFrom(move)
        first.input[0], first.output[0] = INPUT, middle
        second.input[0], second.output[0] = middle, cast.output[0]
        move.CopyFrom(first)
        cast.CopyFrom(second)
        for value in [value for value in graph.value_info if value.name == middle]:
            graph.value_info.remove(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress notes and warnings away from the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

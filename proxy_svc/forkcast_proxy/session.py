"""A fitted model, checked before it is loaded, and run on one thread.

The file is hostile until shown otherwise: ONNX has read files outside the model's folder three
times (CVE-2022-25882, CVE-2024-27318, CVE-2026-27489). So the bytes must have the card's digest,
and hold one plain graph of a few known operators with all weights inside and finite; everything
else is refused before ONNX Runtime sees it, and the runtime gets bytes, never a path.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from forkcast_proxy.card import CARD_FILE, CARD_VERSION, MODEL_FILE, OUTPUTS, SERVED, Card
from forkcast_proxy.features import FEATURE_NAMES, FEATURE_VERSION, FloatMatrix
from forkcast_wire.documents import DocumentError, load
from forkcast_wire.echo import first_line

_MOST_BYTES = 16 << 20
#: All that the exporter writes; nothing that reads files, loops or calls out.
ALLOWED_OPERATORS = frozenset(
    {"Add", "Clip", "MatMul", "Mul", "ReduceMean", "Relu", "Reshape", "Sqrt", "Sub", "Transpose"}
)
_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)


class ModelRejectedError(ValueError):
    """The model must not be used; the message says which rule it breaks."""


def check(data: bytes, sha256: str) -> None:
    """Raises ModelRejectedError unless the bytes are the card's and nothing but a plain network."""
    if len(data) > _MOST_BYTES:
        raise ModelRejectedError(f"model: {len(data)} bytes are more than {_MOST_BYTES}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelRejectedError("model: sha256 differs from the card's")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's DecodeError, by whichever implementation is loaded
        raise ModelRejectedError("model: not an ONNX file") from error
    graph = model.graph
    domains = {one.domain for one in model.opset_import} | {node.domain for node in graph.node}
    if domains - {"", "ai.onnx"} or model.functions:
        raise ModelRejectedError(f"model: operators of other domains: {sorted(domains)}")
    if graph.sparse_initializer:
        raise ModelRejectedError("model: sparse initializers are refused")
    for node in graph.node:
        if node.op_type not in ALLOWED_OPERATORS:
            raise ModelRejectedError(f"model: operator {node.op_type} is refused")
        for attribute in node.attribute:
            if attribute.type not in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
                raise ModelRejectedError(f"model: {node.op_type}.{attribute.name} holds more")
    for tensor in graph.initializer:
        _check_tensor(tensor)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
        raise ModelRejectedError(f"model: {tensor.name} lies in an external file")
    if tensor.data_type not in _TYPES:
        raise ModelRejectedError(f"model: {tensor.name} is neither float32 nor int64")
    if math.prod(tensor.dims) * 4 > _MOST_BYTES:
        raise ModelRejectedError(f"model: {tensor.name} declares an impossible shape")
    try:
        finite = bool(np.isfinite(numpy_helper.to_array(tensor)).all())
    except (ValueError, TypeError) as error:
        raise ModelRejectedError(f"model: {tensor.name} does not fill its shape") from error
    if not finite:
        raise ModelRejectedError(f"model: {tensor.name} holds non-finite values")


@dataclass(frozen=True, slots=True)
class Model:
    """A checked model with its card."""

    card: Card
    session: ort.InferenceSession

    def run(self, matrix: FloatMatrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[M, F] -> (mean, spread), both [M, 3] in the order of OUTPUTS."""
        mean, spread = self.session.run(["mean", "spread"], {"features": matrix})
        return mean, spread


def open_model(folder: Path) -> Model:
    """The model in a folder. Raises FileNotFoundError if there is none, ModelRejectedError."""
    data, text = (folder / MODEL_FILE).read_bytes(), (folder / CARD_FILE).read_bytes()
    try:
        card = load(Card, text)
    except DocumentError as error:
        raise ModelRejectedError(f"card: {error}") from error
    if card.version != CARD_VERSION or card.feature_version != FEATURE_VERSION:
        raise ModelRejectedError(
            f"version mismatch: card {card.version} of features {card.feature_version}; this "
            f"service reads {CARD_VERSION} of {FEATURE_VERSION}"
        )
    widths = {len(card.feature_names), len(card.feature_low), len(card.feature_high)}
    if card.feature_names != FEATURE_NAMES or len(widths) > 1:
        raise ModelRejectedError("version mismatch: the card's features are not this service's")
    _check_card(card)
    check(data, card.sha256)
    model = Model(card, _start(data))
    _check_shapes(model)
    return model


def _check_card(card: Card) -> None:
    """Refuses a card whose parts do not fit each other: it would serve one output for another."""
    horizons = card.horizons
    if not horizons or horizons[0] < 1 or list(horizons) != sorted(set(horizons)):
        raise ModelRejectedError("card: horizons must be >= 1 and rise")
    if set(card.served) != set(SERVED):
        raise ModelRejectedError(f"card: served must name {', '.join(SERVED)}")
    if any(set(served) - set(horizons) for served in card.served.values()):
        raise ModelRejectedError("card: served names other horizons than the fitted ones")
    if len(card.risk) != len(horizons):
        raise ModelRejectedError("card: there must be one risk table for each horizon")
    for table in card.risk:
        if {len(table.low), len(table.high)} != {len(table.edges) + 1}:
            raise ModelRejectedError("card: the risk table is ragged")


def _start(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # what it has to say comes as an exception too
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has no common base class for its refusals
        raise ModelRejectedError(f"model: {first_line(error)}") from error


def _check_shapes(model: Model) -> None:
    probe = np.zeros((2, len(FEATURE_NAMES)), dtype=np.float32)
    try:
        mean, spread = model.run(probe)
    except Exception as error:  # see _start
        raise ModelRejectedError(f"model: {first_line(error)}") from error
    if mean.shape != (2, len(OUTPUTS)) or spread.shape != mean.shape:
        raise ModelRejectedError(f"model: outputs of shape {mean.shape} and {spread.shape}")

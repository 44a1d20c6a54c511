"""The forecaster: five small perceptrons on one trunk, fitted in numpy, exported as one graph.

Torch has no place in the control plane, and a network of some ten thousand weights needs none: the
gradients are written out below, and the export is a dozen ONNX nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from forkcast_proxy.features import FloatMatrix

FloatArray = NDArray[np.float64]
Weights = dict[str, FloatArray]

MEMBERS, _TRUNK, _HEAD, _OUTPUTS = 5, 48, 24, 3
#: Standardised inputs are clipped here, so that no feature can pull a forecast far out.
_CLIP = 4.0
#: The decay is strong because runs are few: of .03, .1, .3, 1, 2 and 4 it gave the best Brier score
#: out of fold (docs/experiments.md, "The proxy").
_RATE, _DECAY, _BETAS, _EPSILON = 3e-3, 1.0, (0.9, 0.99), 1e-8
_STEPS, _CHECK_EVERY, _PATIENCE = 800, 20, 6
_HUBER = 2.0
#: Weight of the errors within one fork: they are small beside those between forks, and they alone
#: order the candidates.
_WITHIN = 8.0
_OPSET, _IR = 17, 8


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """values: [N, 3] in the order of OUTPUTS (the second is 0 or 1). known: [N, 3] bool.
    forks, runs: [N] integer labels; rows of one fork and horizon share a label.
    """

    values: FloatArray
    known: NDArray[np.bool_]
    forks: NDArray[np.int64]
    runs: NDArray[np.int64]

    def rows(self, chosen: NDArray[np.bool_]) -> Targets:
        """The chosen rows."""
        return Targets(
            self.values[chosen], self.known[chosen], self.forks[chosen], self.runs[chosen]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """center, scale: [F] of the inputs; out_center, out_scale: [3]; weights: see `_start`."""

    center: FloatArray
    scale: FloatArray
    out_center: FloatArray
    out_scale: FloatArray
    weights: Weights

    def members(self, matrix: FloatMatrix) -> FloatArray:
        """[M, F] -> [members, M, 3]."""
        raw = _forward(self.weights, self.standardised(matrix))["out"]
        out: FloatArray = raw * self.out_scale + self.out_center
        return out

    def standardised(self, matrix: FloatMatrix) -> FloatArray:
        """Inputs as the trunk sees them."""
        scaled = (matrix.astype(np.float64) - self.center) * self.scale
        clipped: FloatArray = np.clip(scaled, -_CLIP, _CLIP)
        return clipped

    def predict(self, matrix: FloatMatrix) -> tuple[FloatArray, FloatArray]:
        """(mean, spread) over the members, both [M, 3]."""
        out = self.members(matrix)
        mean: FloatArray = out.mean(0)
        spread: FloatArray = out.std(0)
        return mean, spread


def _start(rng: np.random.Generator, inputs: int) -> Weights:
    def drawn(*shape: int) -> FloatArray:
        normal: FloatArray = rng.standard_normal(shape)
        return normal * float(np.sqrt(2.0 / shape[-2]))

    return {
        "trunk": drawn(inputs, _TRUNK),
        "trunk_bias": np.zeros(_TRUNK),
        "head": drawn(_TRUNK, MEMBERS * _HEAD),
        "head_bias": np.zeros(MEMBERS * _HEAD),
        "last": drawn(MEMBERS, _HEAD, _OUTPUTS) * 0.3,
        "last_bias": np.zeros((MEMBERS, 1, _OUTPUTS)),
    }


def _forward(weights: Weights, x: FloatArray) -> dict[str, FloatArray]:
    trunk = np.maximum(x @ weights["trunk"] + weights["trunk_bias"], 0.0)
    flat = np.maximum(trunk @ weights["head"] + weights["head_bias"], 0.0)
    head = flat.reshape(len(x), MEMBERS, _HEAD).transpose(1, 0, 2)
    return {"trunk": trunk, "head": head, "out": head @ weights["last"] + weights["last_bias"]}


def _backward(
    weights: Weights, x: FloatArray, seen: Mapping[str, FloatArray], error: FloatArray
) -> Weights:
    """Gradients of a loss whose derivative by the outputs is ``error``, [members, M, 3]."""
    head = (error @ weights["last"].transpose(0, 2, 1)) * (seen["head"] > 0)
    flat = head.transpose(1, 0, 2).reshape(len(x), -1)
    trunk = (flat @ weights["head"].T) * (seen["trunk"] > 0)
    return {
        "trunk": x.T @ trunk,
        "trunk_bias": trunk.sum(0),
        "head": seen["trunk"].T @ flat,
        "head_bias": flat.sum(0),
        "last": seen["head"].transpose(0, 2, 1) @ error,
        "last_bias": error.sum(1, keepdims=True),
    }


def _errors(out: FloatArray, targets: Targets, weight: FloatArray) -> tuple[float, FloatArray]:
    """(loss, its derivative by the outputs): Huber for the two amounts, with the loss's errors
    within a fork counted again; cross-entropy for the event. weight: [members, M].
    """
    known = targets.known[None] * weight[..., None]
    count = max(float(known.sum()), 1.0)
    rest = np.where(targets.known, out - np.where(targets.known, targets.values, 0.0), 0.0)
    bounded = np.clip(rest, -_HUBER, _HUBER)
    loss = np.abs(bounded) * (np.abs(rest) - 0.5 * np.abs(bounded))
    slope = bounded.copy()
    logit = np.clip(out[..., 1], -30.0, 30.0)
    loss[..., 1] = np.logaddexp(0.0, logit) - targets.values[:, 1] * logit
    slope[..., 1] = 1.0 / (1.0 + np.exp(-logit)) - targets.values[:, 1]
    within = _centred(bounded[..., 0], targets)
    loss[..., 0] += _WITHIN * 0.5 * within**2
    slope[..., 0] += _WITHIN * within * (np.abs(rest[..., 0]) < _HUBER)
    return float((loss * known).sum()) / count, slope * known / count * MEMBERS


def _centred(rest: FloatArray, targets: Targets) -> FloatArray:
    """[members, M] errors minus their mean over the fork, 0 where the outcome is unknown."""
    known = targets.known[:, 0].astype(np.float64)
    size = int(targets.forks.max()) + 1 if len(targets.forks) else 0
    counts = np.maximum(np.bincount(targets.forks, known, size), 1.0)
    sums = np.stack([np.bincount(targets.forks, one * known, size) for one in rest])
    centred: FloatArray = (rest - (sums / counts)[:, targets.forks]) * known
    return centred


def fit(matrix: FloatMatrix, targets: Targets, *, seed: int) -> Network:
    """Fit on the given rows; every fifth run only says when to stop. Members differ by their first
    weights and by a bootstrap over runs.
    """
    rng = np.random.default_rng(seed)
    center, spread = matrix.mean(0).astype(np.float64), matrix.std(0).astype(np.float64)
    scale = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0)
    out_center, out_scale = _amounts(targets)
    scaled = Targets(
        (targets.values - out_center) / out_scale, targets.known, targets.forks, targets.runs
    )
    network = Network(center, scale, out_center, out_scale, _start(rng, matrix.shape[1]))
    kinds = np.unique(targets.runs)
    watched = np.isin(targets.runs, rng.permutation(kinds)[: max(1, len(kinds) // 5)])
    x = network.standardised(matrix)
    counts = rng.poisson(1.0, size=(MEMBERS, int(kinds.max()) + 1)).astype(np.float64)
    weight = counts[:, targets.runs[~watched]]
    learn = scaled.rows(~watched)
    watch = scaled.rows(watched)

    def gradient(weights: Weights) -> Weights:
        seen = _forward(weights, x[~watched])
        _, error = _errors(seen["out"], learn, weight)
        return _backward(weights, x[~watched], seen, error)

    def judge(weights: Weights) -> float:
        out = _forward(weights, x[watched])["out"]
        return _errors(out, watch, np.ones((MEMBERS, int(watched.sum()))))[0]

    return Network(center, scale, out_center, out_scale, _adam(network.weights, gradient, judge))


def _amounts(targets: Targets) -> tuple[FloatArray, FloatArray]:
    """(center, scale) of the outputs; the logit keeps its own. Rare extremes do not set a scale."""
    center, scale = np.zeros(_OUTPUTS), np.ones(_OUTPUTS)
    for column in (0, 2):
        values = targets.values[targets.known[:, column], column]
        if len(values):
            low, high = np.quantile(values, [0.02, 0.98])
            center[column] = np.median(values)
            scale[column] = max(float(np.std(np.clip(values, low, high))), 1e-3)
    return center, scale


def _adam(
    weights: Weights, gradient: Callable[[Weights], Weights], judge: Callable[[Weights], float]
) -> Weights:
    """AdamW (arXiv 1711.05101, algorithm 2), full batch, until the judged loss stops falling."""
    first = {name: np.zeros_like(w) for name, w in weights.items()}
    second = {name: np.zeros_like(w) for name, w in weights.items()}
    best, best_loss, worse = weights, judge(weights), 0
    for step in range(1, _STEPS + 1):
        gradients = gradient(weights)
        changed = {}
        for name, g in gradients.items():
            first[name] = _BETAS[0] * first[name] + (1 - _BETAS[0]) * g
            second[name] = _BETAS[1] * second[name] + (1 - _BETAS[1]) * g * g
            mean = first[name] / (1 - _BETAS[0] ** step)
            size = np.sqrt(second[name] / (1 - _BETAS[1] ** step)) + _EPSILON
            decay = 0.0 if name.endswith("bias") else _DECAY
            changed[name] = weights[name] - _RATE * (mean / size + decay * weights[name])
        weights = changed
        if step % _CHECK_EVERY == 0:
            loss = judge(weights)
            best, best_loss, worse = (
                (weights, loss, 0) if loss < best_loss else (best, best_loss, worse + 1)
            )
            if worse >= _PATIENCE:
                break
    return best


# --------------------------------------------------------------------------------------------- ONNX


def to_onnx(network: Network) -> bytes:
    """One graph: features [M, F] -> mean [M, 3], spread [M, 3]; all weights inside, float32."""
    constants: dict[str, NDArray[Any]] = {
        "center": network.center.astype(np.float32),
        "scale": network.scale.astype(np.float32),
        "clip_low": np.array(-_CLIP, dtype=np.float32),
        "clip_high": np.array(_CLIP, dtype=np.float32),
        "shape": np.array([-1, MEMBERS, _HEAD], dtype=np.int64),
        "out_scale": network.out_scale.astype(np.float32),
        "out_center": network.out_center.astype(np.float32),
        **{name: value.astype(np.float32) for name, value in network.weights.items()},
    }
    chain: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Sub", ["features", "center"], "centred", {}),
        ("Mul", ["centred", "scale"], "scaled", {}),
        ("Clip", ["scaled", "clip_low", "clip_high"], "x", {}),
        ("MatMul", ["x", "trunk"], "trunk_sum", {}),
        ("Add", ["trunk_sum", "trunk_bias"], "trunk_in", {}),
        ("Relu", ["trunk_in"], "trunk_out", {}),
        ("MatMul", ["trunk_out", "head"], "head_sum", {}),
        ("Add", ["head_sum", "head_bias"], "head_in", {}),
        ("Relu", ["head_in"], "head_flat", {}),
        ("Reshape", ["head_flat", "shape"], "head_by_row", {}),
        ("Transpose", ["head_by_row"], "head_by_member", {"perm": [1, 0, 2]}),
        ("MatMul", ["head_by_member", "last"], "last_sum", {}),
        ("Add", ["last_sum", "last_bias"], "raw", {}),
        ("Mul", ["raw", "out_scale"], "raw_scaled", {}),
        ("Add", ["raw_scaled", "out_center"], "members", {}),
        ("ReduceMean", ["members"], "mean", {"axes": [0], "keepdims": 0}),
        ("Sub", ["members", "mean"], "apart", {}),
        ("Mul", ["apart", "apart"], "apart_squared", {}),
        ("ReduceMean", ["apart_squared"], "variance", {"axes": [0], "keepdims": 0}),
        ("Sqrt", ["variance"], "spread", {}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, into, [out], **how) for kind, into, out, how in chain],
        "forkcast_proxy",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["M", len(network.center)])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", _OUTPUTS])
            for name in ("mean", "spread")
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())

"""Manifests that cannot be carried out, each wrong in one place, and what must be said of it."""

from __future__ import annotations

import copy
from typing import Any

GOOD: dict[str, Any] = {
    "apiVersion": "forkcast.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "one"},
    "spec": {"data": {"train": {"uri": "python-stdlib:"}}, "training": {"totalSteps": 10}},
}
_WEIGHTS = {"volatility": "0.9", "entropy": "0.3", "disagreement": "0.2"}
#: What the API server refuses. name: (path from the root, value, what the refusal must name)
REFUSED: dict[str, tuple[str, Any, list[str]]] = {
    "top_k_over_candidates": ("spec.branching", {"topK": 8, "candidates": 4}, ["spec.branching.topK", "lower topK"]),
    "top_k_over_16": ("spec.branching.topK", 17, ["spec.branching.topK", "16"]),
    "candidates_over_500": ("spec.branching.candidates", 501, ["spec.branching.candidates", "500"]),
    "falling_rungs": ("spec.branching.rungs", [25, 10], ["spec.branching.rungs", "rise"]),
    "equal_rungs": ("spec.branching.rungs", [10, 10, 25], ["spec.branching.rungs", "rise"]),
    "no_rungs": ("spec.branching.rungs", [], ["spec.branching.rungs"]),
    "nine_rungs": ("spec.branching.rungs", list(range(1, 10)), ["spec.branching.rungs", "8"]),
    "confirm_inside_rungs": ("spec.branching.confirm", {"steps": 40}, ["confirm.steps", "exceed"]),
    "research_only": ("spec.branching.actions", {"skipBatch": True}, ["spec.branching.actions", "research"]),
    "negative_scale": ("spec.branching.actions", {"learningRateScales": ["-1"]}, ["learningRateScales[0]"]),
    "risk_over_one": ("spec.branching.acceptance", {"maxRiskQuantile": "1.2"}, ["maxRiskQuantile"]),
    "bad_mode": ("spec.branching.mode", "Enforced", ["spec.branching.mode", "Enforce"]),
    "unknown_signal": ("spec.uncertainty", {"weights": {**_WEIGHTS, "mood": "0"}}, ["spec.uncertainty.weights.mood"]),
    "unknown_search": ("spec.branching.search", "Grid", ["spec.branching.search", "Lattice"]),
    "unknown_choice": ("spec.branching.actions", {"clipping": ["Keep", "Hard"]}, ["spec.branching.actions.clipping[1]", "ZClip"]),
    "decay_of_one": ("spec.uncertainty.emaDecay", "1.0", ["spec.uncertainty.emaDecay"]),
    "zero_z": ("spec.uncertainty", {"trigger": {"z": "0"}}, ["spec.uncertainty.trigger.z"]),
    "switch_for_a_decimal": ("spec.optimizer.learningRate", True, ["spec.optimizer.learningRate"]),
    "part_for_a_decimal": ("spec.optimizer.learningRate", {}, ["spec.optimizer.learningRate"]),
    "number_below_zero": ("spec.optimizer.weightDecay", -0.1, ["spec.optimizer.weightDecay", "greater than or equal to 0"]),
    "number_over_one": ("spec.branching.acceptance", {"maxRiskQuantile": 1.2}, ["maxRiskQuantile", "less than or equal to 1"]),
    "not_a_decimal": ("spec.optimizer.learningRate", "fast", ["spec.optimizer.learningRate"]),
    "endless_decimal": ("spec.optimizer.learningRate", "1e999", ["spec.optimizer.learningRate"]),
    "zero_rate": ("spec.optimizer.learningRate", "0", ["spec.optimizer.learningRate"]),
    "three_betas": ("spec.optimizer.betas", ["0.9", "0.9", "0.9"], ["spec.optimizer.betas", "2"]),
    "beta_of_one": ("spec.optimizer.betas", ["0.9", "1"], ["spec.optimizer.betas[1]"]),
    "bad_clipping": ("spec.optimizer.clipping", {"policy": "Hard"}, ["spec.optimizer.clipping.policy"]),
    "missing_steps": ("spec.training", {"seed": 1}, ["spec.training.totalSteps", "Required"]),
    "zero_steps": ("spec.training.totalSteps", 0, ["spec.training.totalSteps", "1"]),
    "steps_as_text": ("spec.training.totalSteps", "10", ["spec.training.totalSteps", "integer"]),
    "too_many_steps": ("spec.training.totalSteps", 100_000_001, ["spec.training.totalSteps"]),
    "missing_data": ("spec.data", None, ["spec.data", "Required"]),
    "missing_uri": ("spec.data.train", {"format": "Text"}, ["spec.data.train.uri", "Required"]),
    "text_and_mixture": ("spec.data", {"train": {"uri": "a"}, "mixture": [{"name": "a", "uri": "a", "weight": 1}]}, ["spec.data.train", "exactly one"]),
    "no_text": ("spec.data", {"mixture": []}, ["spec.data.train", "exactly one"]),
    "two_of_a_name": ("spec.data", {"mixture": [{"name": "a", "uri": "a", "weight": 1}, {"name": "a", "uri": "b", "weight": "2"}]}, ["spec.data.mixture", "same name"]),
    "weight_of_nothing": ("spec.data", {"mixture": [{"name": "a", "uri": "a", "weight": "0"}]}, ["spec.data.mixture[0].weight"]),
    "no_bucket": ("spec.data.train", {"uri": "s3:///c4"}, ["spec.data.train.uri", "s3://BUCKET"]),
    "tokens_in_a_bucket": ("spec.data.train", {"uri": "s3://texts/c4", "format": "Tokens"}, ["spec.data.train.uri", "another format"]),
    "pretrained_from_nowhere": ("spec.model", {"init": "Pretrained"}, ["spec.model.source", "both"]),
    "source_without_pretrained": ("spec.model", {"source": "gpt2"}, ["spec.model.source", "both"]),
    "stressor_backwards": ("spec.stressors", [{"type": "LongSequence", "fromStep": 9, "toStep": 3}], ["spec.stressors[0].toStep", "fromStep"]),
    "stressor_magnitude": ("spec.stressors", [{"type": "LongSequence", "magnitude": "3"}], ["spec.stressors[0]"]),
    "seventeen_stressors": ("spec.stressors", [{"type": "LongSequence"}] * 17, ["spec.stressors", "16"]),
    "bucket_without_endpoint": ("spec.storage", {"bucket": "some"}, ["spec.storage.bucket", "endpoint"]),
    "folder_and_bucket": ("spec.storage", {"path": "a", "bucket": "some", "endpoint": "https://s3"}, ["spec.storage.path"]),
    "endpoint_not_a_url": ("spec.storage", {"bucket": "some", "endpoint": "s3:9000"}, ["spec.storage.endpoint"]),
    "prefix_upwards": ("spec.storage", {"prefix": "a/../b/"}, ["spec.storage.prefix"]),
    "prefix_of_dots": ("spec.storage", {"prefix": "./"}, ["spec.storage.prefix"]),
    "prefix_without_slash": ("spec.storage", {"prefix": "runs"}, ["spec.storage.prefix"]),
    "secret_with_a_slash": ("spec.storage", {"secretRef": {"name": "a/b"}}, ["spec.storage.secretRef.name"]),
    "no_nodes": ("spec.parallelism.nodes", 0, ["spec.parallelism.nodes"]),
    "quantity": ("spec.resources", {"perNode": {"limits": {"cpu": "many"}}}, ["spec.resources.perNode.limits.cpu"]),
    "tolerate_nothing": ("spec.podPatch", {"tolerations": [{"effect": "NoSchedule"}]}, ["spec.podPatch.tolerations[0].key"]),
    "value_twice": ("spec.podPatch", {"env": [{"name": "A", "value": "b", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}, ["spec.podPatch.env[0].valueFrom", "keep one"]),
    "value_from_nowhere": ("spec.podPatch", {"env": [{"name": "A", "valueFrom": {}}]}, ["secretKeyRef", "Required"]),
    "affinity_without_values": ("spec.podPatch", {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]}}}}, ["values", "In, NotIn"]),
    "our_variable": ("spec.podPatch", {"env": [{"name": "FORKCAST_X"}]}, ["spec.podPatch.env[0].name"]),
    "mount_below_nothing": ("spec.podPatch", {"claims": [{"claimName": "a", "mountPath": "a"}]}, ["mountPath"]),
    "label_key": ("spec.podPatch.labels", {"a b": "c"}, ["spec.podPatch.labels", "63 letters"]),
    "annotation_key": ("spec.podPatch.annotations", {"a/b/c": "d"}, ["spec.podPatch.annotations", "correct the key"]),
    "selector_key": ("spec.podPatch.nodeSelector", {"!": "a"}, ["spec.podPatch.nodeSelector", "63 letters"]),
    "prefix_of_a_key": ("spec.podPatch.labels", {"a" * 254 + "/b": "c"}, ["spec.podPatch.labels", "DNS name"]),
    "affinity_key": ("spec.podPatch", {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a b", "operator": "Exists"}]}]}}}}, ["matchExpressions[0].key", "63 letters"]),
    "toleration_key": ("spec.podPatch.tolerations", [{"key": "a b", "operator": "Exists"}], ["tolerations[0].key", "63 letters"]),
    "toleration_seconds": ("spec.podPatch.tolerations", [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 9}], ["tolerations[0].tolerationSeconds", "NoExecute"]),
    "mounted_over_scratch": ("spec.podPatch.claims", [{"claimName": "a", "mountPath": "/work"}], ["claims[0].mountPath", "choose another"]),
    "mounted_over_shared_memory": ("spec.podPatch.claims", [{"claimName": "a", "mountPath": "/dev/shm"}], ["claims[0].mountPath", "choose another"]),
    "mounted_twice": ("spec.podPatch.claims", [{"claimName": "a", "mountPath": "/d"}, {"claimName": "b", "mountPath": "/d"}], ["spec.podPatch.claims", "one path"]),
    "secret_key": ("spec.podPatch", {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": ".."}}}]}, ["secretKeyRef.key"]),
    "long_queue": ("spec.scheduling.queueName", "q" * 64, ["spec.scheduling.queueName", "63"]),
    "negative_ttl": ("spec.lifecycle.ttlSecondsAfterFinished", -1, ["ttlSecondsAfterFinished"]),
    "long_name": ("metadata.name", "a" * 41, ["metadata.name", "40", "branches, Jobs and pods", "use lower-case"]),
    "dotted_name": ("metadata.name", "a.b", ["metadata.name", "without dots", "use lower-case"]),
    "unknown_field": ("spec.branching.topk", 4, ["spec.branching.topk", "unknown field"]),
    "unknown_part": ("spec.branchin", {}, ["spec.branchin", "unknown field"]),
    "host_path": ("spec.podPatch", {"hostNetwork": True}, ["hostNetwork", "unknown field"]),
}  # fmt: skip


#: What the API server takes and cannot be carried out, as only a Job's or a pod's rules say it.
#: name: (path, value, reason of condition and event, what the message must name)
ANSWERED: dict[str, tuple[str, Any, str, list[str]]] = {
    "request_over_limit": ("spec.resources.perNode", {"requests": {"cpu": 4}, "limits": {"cpu": 2}}, "TrainerRefused", ["resources.requests", "cpu"]),
    "resource_name": ("spec.resources.perNode", {"limits": {"gpu": 1}}, "TrainerRefused", ["resources.limits[gpu]"]),
    "device_in_halves": ("spec.resources.perNode", {"limits": {"nvidia.com/gpu": "500m"}}, "TrainerRefused", ["nvidia.com/gpu"]),
    "unknown_account": ("spec.podPatch.serviceAccountName", "nobody", "NoPods", ["kubectl describe job"]),
    "unknown_priority": ("spec.scheduling.priorityClassName", "none", "NoPods", ["kubectl describe job"]),
    "unknown_runtime": ("spec.podPatch.runtimeClassName", "none", "NoPods", ["kubectl describe job"]),
    "weights_sum": ("spec.uncertainty", {"weights": _WEIGHTS}, "InvalidSpec", ["spec.uncertainty.weights", "sum to 1, not 1.4"]),
    "foreign_store": ("spec.storage", {"bucket": "bucket", "endpoint": "https://elsewhere"}, "StoreUnknown", ["spec.storage"]),
}  # fmt: skip


def changed(path: str, value: Any, document: dict[str, Any] = GOOD) -> dict[str, Any]:
    made = copy.deepcopy(document)
    *parts, last = path.split(".")
    place = made
    for part in parts:
        place = place.setdefault(part, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return made

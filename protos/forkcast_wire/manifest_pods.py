"""What a manifest says about pods: images, resources, placement, life.

Only a cluster reads these fields; a run on one machine accepts and ignores them, so that the same
file serves both. It is a whitelist, not a pod template: whatever a pod's security rests on (users,
capabilities, host paths, commands) is the operator's alone.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from forkcast_wire.fields import ObjectName, Part, Rule, Spelling

QUANTITY_PATTERN = r"^([0-9]+\.?[0-9]*|\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?$"


def _quantity(value: object) -> object:
    """A number stands for itself, as everywhere in Kubernetes (`nvidia.com/gpu: 8`, `cpu: 0.5`)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return f"{value:.15g}"


_QUANTITY_SCHEMA = {
    "type": ["number", "string"],
    "pattern": QUANTITY_PATTERN,
    "maxLength": 24,
    "minimum": 0,
}
Quantity = Annotated[
    str,
    Field(min_length=1, max_length=24, pattern=QUANTITY_PATTERN),
    BeforeValidator(_quantity),
    WithJsonSchema(_QUANTITY_SCHEMA),
]
QualifiedName = Annotated[str, Field(min_length=1, max_length=316)]
_PART, _ANY_PART = "[a-z0-9]([-a-z0-9]*[a-z0-9])?", "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"
_NAME: Final = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
#: At most 253 characters before a slash.
_SHORT_PREFIX: Final = "(.{1,253}/)?[^/]*"
_KEY_SAID: Final = (
    "not a key: at most 63 letters, digits, '-', '_' and '.', the first and the last a letter or a "
    "digit, alone or behind a DNS name and '/'; correct the key"
)
_LABEL_KEY: Final = Spelling((f"({_PART}([.]{_PART})*/)?{_NAME}", _SHORT_PREFIX), _KEY_SAID)
#: The key of a label: a name with or without a DNS subdomain and a slash before it.
LabelKey = Annotated[str, _LABEL_KEY]
#: The same, where capitals are taken in the DNS name, too.
AnnotationKey = Annotated[
    str, Spelling((f"({_ANY_PART}([.]{_ANY_PART})*/)?{_NAME}", _SHORT_PREFIX), _KEY_SAID)
]
_KEY_LENGTH: Final = 317
LabelValue = Annotated[
    str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")
]
ImageName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x20\x7f]+$")]
Seconds = Annotated[int, Field(ge=0, le=31_536_000, strict=True)]


#: Kueue's queues are named by a label's value.
QueueName = Annotated[ObjectName, Field(max_length=63)]


class NameRef(Part):
    """The name of an object in the run's namespace."""

    name: ObjectName
    """Name of the object."""


class SecretRef(Part):
    """A Secret in the run's namespace; its two values are mounted as files, never read by the
    operator.
    """

    name: ObjectName
    """Name of the Secret."""
    access_key_id_key: Annotated[str, Field(min_length=1, max_length=253)] = "accessKeyId"
    """Key in the Secret that holds the access key id."""
    secret_access_key_key: Annotated[str, Field(min_length=1, max_length=253)] = "secretAccessKey"
    """Key in the Secret that holds the secret access key."""


class CaRef(Part):
    """Certificates (PEM) that the object store's certificate is checked against."""

    kind: Literal["ConfigMap", "Secret"] = "ConfigMap"
    """What holds the certificates."""
    name: ObjectName
    """Name of the ConfigMap or Secret, in the run's namespace."""
    key: Annotated[str, Field(min_length=1, max_length=253)] = "ca.crt"
    """Key that holds the PEM text."""


class Images(Part):
    """Container images (Kubernetes only)."""

    trainer: ImageName | None = None
    """Image of the trainer. Absent: the operator's own default."""
    rollout: ImageName | None = None
    """Image of the rollouts. Absent: the trainer's."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] | None = None
    """When the kubelet pulls the images. Absent: IfNotPresent for images named here, the operator's own
    for its default image."""
    pull_secrets: Annotated[list[NameRef], Field(max_length=8)] = []
    """Secrets with registry credentials, in the run's namespace."""


class PodResources(Part):
    """Requests and limits of one pod's container, as quantities of Kubernetes."""

    requests: Annotated[dict[QualifiedName, Quantity], Field(max_length=16)] = {}
    """What the scheduler sets aside, e.g. {cpu: "8", memory: 64Gi}."""
    limits: Annotated[dict[QualifiedName, Quantity], Field(max_length=16)] = {}
    """What the container may use at most, e.g. {nvidia.com/gpu: 8}."""


class Resources(Part):
    """What pods of the run ask for (Kubernetes only). May change only while the run is suspended."""

    per_node: PodResources = PodResources()
    """Of each trainer pod; there is one a node."""
    rollout: PodResources | None = None
    """Of each rollout pod. Absent: as the trainer's, but for one process."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, counted against the memory limit, e.g. 16Gi. Absent: the runtime's 64 MiB."""
    scratch: Quantity = "10Gi"
    """Size limit of the scratch volume for token files and states on their way to the store."""


class Scheduling(Part):
    """Queues and priorities (Kubernetes only)."""

    queue_name: QueueName | None = None
    """Kueue LocalQueue of the trainer. Absent: no queue."""
    rollout_queue_name: QueueName | None = None
    """Kueue LocalQueue of the rollouts. Absent: the trainer's queue."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the trainer's pods. Absent: the cluster's default."""
    rollout_priority_class_name: ObjectName | None = None
    """PriorityClass of the rollouts' pods; give one below the trainer's. Absent: the operator's."""


_OPTIONAL_KEY: Final = Spelling((f"({_LABEL_KEY.patterns[0]})?", _SHORT_PREFIX), _KEY_SAID)


class Toleration(Part):
    """A taint the pods tolerate; as in a pod's spec."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".value",
            "self.operator == 'Equal' || self.value == ''",
            "must be empty where operator is Exists; remove it",
        ),
        Rule(
            ".key",
            "self.operator == 'Exists' || self.key != ''",
            "is needed where operator is Equal; set it, or use Exists",
        ),
        Rule(
            ".tolerationSeconds",
            "!has(self.tolerationSeconds) || self.effect == 'NoExecute'",
            "is how long a pod stays with effect NoExecute; set that effect, or leave it out",
        ),
    )

    key: Annotated[str, Field(max_length=_KEY_LENGTH), _OPTIONAL_KEY] = ""
    """Key of the taint; empty with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the value is compared."""
    value: LabelValue = ""
    """Value of the taint, with operator Equal."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Effect of the taint; empty: every effect."""
    toleration_seconds: Seconds | None = None
    """With NoExecute: how long the pod stays. Absent: for ever."""

    @model_validator(mode="after")
    def _as_kubernetes_wants(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError("value: must be empty where operator is Exists; remove it")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key: is needed where operator is Equal; set it, or use Exists")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError(
                "tolerationSeconds: is how long a pod stays with effect NoExecute; set that effect, "
                "or leave it out"
            )
        return self


class SecretKeyRef(Part):
    """A value in a Secret of the run's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[
        str, Field(min_length=1, max_length=253, pattern=r"^[.]?[-_A-Za-z0-9][-._A-Za-z0-9]*$")
    ]
    """Key in the Secret."""
    optional: bool = False
    """Whether pods start without it."""


class EnvironmentSource(Part):
    """Where the value of a variable comes from."""

    secret_key_ref: SecretKeyRef
    """A key of a Secret; the operator does not read it."""


class EnvironmentVariable(Part):
    """A variable of the trainer's and the rollouts' containers, e.g. HF_TOKEN from a Secret. A run on
    one machine has the variables of its shell instead.
    """

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".name",
            "!self.name.startsWith('FORKCAST_') && !self.name.startsWith('PET_')",
            "FORKCAST_* and PET_* are set by the operator; choose another",
        ),
        Rule(
            ".valueFrom",
            "!has(self.valueFrom) || self.value == ''",
            "value and valueFrom exclude each other; keep one of them",
        ),
    )

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable. FORKCAST_* and PET_* are the operator's."""
    value: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    """Its value."""
    value_from: EnvironmentSource | None = None
    """Its value by reference, instead of `value`."""

    @model_validator(mode="after")
    def _not_the_operators(self) -> Self:
        if self.value_from is not None and self.value:
            raise ValueError("valueFrom: value and valueFrom exclude each other; keep one of them")
        if self.name.startswith(("FORKCAST_", "PET_")):
            raise ValueError(f"name: {self.name} is set by the operator; choose another")
        return self


class NodeRequirement(Part):
    """What a label of a node must be; as in a pod's spec."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".values",
            "(self.operator in ['Exists', 'DoesNotExist']) == (size(self.values) == 0)",
            "are given exactly with In, NotIn, Gt and Lt; add or remove them",
        ),
        Rule(
            ".values",
            "!(self.operator in ['Gt', 'Lt']) || (size(self.values) == 1"
            " && self.values[0].matches('^[0-9]+$'))",
            "with Gt and Lt are one integer; give it as a text",
        ),
    )

    key: Annotated[str, Field(max_length=_KEY_LENGTH), _LABEL_KEY]
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How it is compared."""
    values: Annotated[list[LabelValue], Field(max_length=16)] = []
    """What it is compared with."""

    @model_validator(mode="after")
    def _as_kubernetes_wants(self) -> Self:
        if (self.operator in ("Exists", "DoesNotExist")) != (not self.values):
            raise ValueError(
                "values: are given exactly with In, NotIn, Gt and Lt; add or remove them"
            )
        integer = len(self.values) == 1 and re.fullmatch("[0-9]+", self.values[0])
        if self.operator in ("Gt", "Lt") and not integer:
            raise ValueError("values: with Gt and Lt are one integer; give it as a text")
        return self


class NodeTerm(Part):
    """Requirements that a node must meet, all of them."""

    match_expressions: Annotated[list[NodeRequirement], Field(min_length=1, max_length=16)]
    """The requirements."""


class NodeTerms(Part):
    """Terms of which a node must meet at least one."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=8)]
    """The terms."""


class PreferredTerm(Part):
    """A term that makes nodes better."""

    weight: Annotated[int, Field(ge=1, le=100, strict=True)]
    """How much better."""
    preference: NodeTerm
    """The term."""


class NodeAffinity(Part):
    """Which nodes may run the pods, and which are better; as in a pod's spec."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    """Nodes that may run them. Absent: all."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredTerm], Field(max_length=8)
    ] = []
    """Nodes that are better."""


class Affinity(Part):
    """Where pods may run, by more than equal labels."""

    node_affinity: NodeAffinity | None = None
    """By labels of nodes."""


#: What the operator mounts in pods. /dev/shm has its own field, resources.sharedMemory.
_OURS: Final = "/+(work|tmp|dev/+shm|etc/+forkcast(/.*)?|var/+run/+secrets(/.*)?)/*"


class ClaimMount(Part):
    """A PersistentVolumeClaim of the run's namespace, e.g. one that holds the training text."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".mountPath",
            f"!self.mountPath.matches('^({_OURS})$')",
            "the operator mounts something there; choose another",
        ),
    )

    claim_name: ObjectName
    """Name of the claim."""
    mount_path: Annotated[str, Field(min_length=2, max_length=512, pattern=r"^/[^:]*$")]
    """Where it is mounted in the trainer's and the rollouts' containers."""
    read_only: bool = True
    """Whether it is mounted read-only."""

    @model_validator(mode="after")
    def _not_the_operators(self) -> Self:
        if re.fullmatch(_OURS, self.mount_path):
            raise ValueError("mountPath: the operator mounts something there; choose another")
        return self


class PodPatch(Part):
    """The fields of the run's pods that a manifest may set (Kubernetes only)."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".claims",
            "self.claims.all(one, self.claims.exists_one(other, other.mountPath == one.mountPath))",
            "two are mounted at one path; choose another for one of them",
        ),
    )

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = {}
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints the pods tolerate."""
    affinity: Affinity | None = None
    """Which nodes may run the pods, and which are better."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods; its token is not mounted. Absent: the namespace's default."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, e.g. nvidia."""
    env: Annotated[list[EnvironmentVariable], Field(max_length=32)] = []
    """Further environment variables."""
    claims: Annotated[list[ClaimMount], Field(max_length=8)] = []
    """Claims to mount."""
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = {}
    """Further labels of the pods."""
    annotations: Annotated[
        dict[AnnotationKey, Annotated[str, Field(max_length=1024)]], Field(max_length=16)
    ] = {}
    """Further annotations of the pods."""

    @model_validator(mode="after")
    def _each_at_its_own_path(self) -> Self:
        if len({one.mount_path for one in self.claims}) < len(self.claims):
            raise ValueError("claims: two are mounted at one path; choose another for one of them")
        return self


class Lifecycle(Part):
    """How long a run and its objects live (Kubernetes only)."""

    active_deadline_seconds: Seconds = 0
    """The run fails when its trainers have been active for so long, all starts together, seconds;
    0 = no deadline."""
    max_restarts: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 10
    """Starts of the trainer after failures before the run is Failed. Not counted is what the cluster
    does: evictions for a node's sake, preemptions, drains."""
    restart_backoff_seconds: Annotated[int, Field(ge=1, le=3600, strict=True)] = 30
    """Wait before the first of them, seconds; doubled with each, at most one hour."""
    ttl_seconds_after_finished: Seconds | None = None
    """The TrainingRun object is deleted so long after its end, seconds. Absent: kept."""
    branch_history: Annotated[int, Field(ge=0, le=1000, strict=True)] = 20
    """Finished Branch objects that are kept; their records in the store stay in any case."""
    on_delete: Literal["Retain", "Delete"] = "Retain"
    """Whether deleting the TrainingRun also deletes what the run has stored."""

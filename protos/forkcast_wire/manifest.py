"""The TrainingRun manifest, `forkcast.dev/v1alpha1`: one model for the local world and the cluster.

Conventions of the format: camelCase names, enums in CamelCase, integers with a maximum, and decimals
as numbers or as texts (3e-4, "0.98"), for YAML tools disagree on which of the two 3e-4 is.
Every field says what it is and its unit; the reference page in docs/ and the custom resource
definitions are generated from here. The parts stand by subject in manifest_*.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from forkcast_wire.fields import NAME_PATTERN, Part, Rule
from forkcast_wire.manifest_branching import (
    Acceptance,
    ActionChoices,
    Branching,
    Budget,
    Confirm,
    Mode,
    Proxy,
    Rollback,
    SignalWeights,
    TriggerThresholds,
    Uncertainty,
)
from forkcast_wire.manifest_data import (
    STRESSOR_PROBABILITY,
    Data,
    Device,
    Dtype,
    Model,
    ModelSize,
    Stressor,
    StressorType,
    TextFormat,
    TextSource,
    Validation,
)
from forkcast_wire.manifest_pods import (
    CaRef,
    Images,
    LabelKey,
    LabelValue,
    Lifecycle,
    PodPatch,
    Resources,
    Scheduling,
    SecretRef,
)
from forkcast_wire.manifest_training import (
    Checkpoint,
    Clipping,
    Optimizer,
    Parallelism,
    Schedule,
    Statistics,
    Storage,
    Training,
)

__all__ = [
    "CHANGEABLE",
    "IMMUTABLE",
    "STRESSOR_PROBABILITY",
    "Acceptance",
    "ActionChoices",
    "Branching",
    "Budget",
    "CaRef",
    "Checkpoint",
    "Clipping",
    "Confirm",
    "Data",
    "Device",
    "Dtype",
    "Images",
    "Lifecycle",
    "Metadata",
    "Mode",
    "Model",
    "ModelSize",
    "Optimizer",
    "Parallelism",
    "PodPatch",
    "Proxy",
    "Resources",
    "Rollback",
    "Schedule",
    "Scheduling",
    "SecretRef",
    "SignalWeights",
    "Statistics",
    "Storage",
    "Stressor",
    "StressorType",
    "TextFormat",
    "TextSource",
    "Training",
    "TrainingRun",
    "TrainingRunSpec",
    "TriggerThresholds",
    "Uncertainty",
    "Validation",
]


#: What makes a run the run it is.
IMMUTABLE: Final = ("model", "data", "stressors", "optimizer", "parallelism", "storage")
#: What of `training` may change within a run; totalSteps may only grow.
CHANGEABLE: Final = ("totalSteps", "threads")
_WHILE_SUSPENDED = ("resources", "scheduling", "podPatch")
_TRAINING_FIXED = [
    field.alias or name
    for name, field in Training.model_fields.items()
    if field.alias not in CHANGEABLE
]


class TrainingRunSpec(Part):
    """What to train, on what, and what to do when it goes wrong."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *(
            Rule(
                f".{name}",
                f"self.{name} == oldSelf.{name}",
                "cannot change within a run; undo it, or create another TrainingRun",
            )
            for name in IMMUTABLE
        ),
        *(
            Rule(
                f".training.{name}",
                f"self.training.{name} == oldSelf.training.{name}",
                "cannot change within a run; undo it, or create another TrainingRun",
            )
            for name in _TRAINING_FIXED
        ),
        Rule(
            ".training.totalSteps",
            "self.training.totalSteps >= oldSelf.training.totalSteps",
            "may only grow; raise it",
        ),
        *(
            Rule(
                f".{name}",
                f"self.{name} == oldSelf.{name} || oldSelf.suspend",
                "may change only while the run is suspended; set suspend: true first",
            )
            for name in _WHILE_SUSPENDED
        ),
    )

    model: Model = Model()
    """Which model is trained. Cannot change."""
    data: Data
    """The text it learns from. Cannot change."""
    stressors: Annotated[list[Stressor], Field(max_length=16)] = []
    """Seeded disturbances, for tests and evaluations. Cannot change."""
    optimizer: Optimizer = Optimizer()
    """How the weights are updated. Cannot change."""
    training: Training
    """Steps and batches; only `totalSteps` may change, and only grow."""
    parallelism: Parallelism = Parallelism()
    """Processes. Cannot change."""
    statistics: Statistics = Statistics()
    """How often the costlier statistics are sampled."""
    storage: Storage = Storage()
    """Where checkpoints, lineage and decisions stand. Cannot change."""
    checkpoint: Checkpoint = Checkpoint()
    """What is saved, and when."""
    uncertainty: Uncertainty = Uncertainty()
    """The detector."""
    branching: Branching = Branching()
    """What happens on a trigger."""
    proxy: Proxy = Proxy()
    """Who forecasts."""
    suspend: bool = False
    """Stop the trainer after a checkpoint and every rollout; false goes on from there."""
    image: Images = Images()
    """Container images (Kubernetes only)."""
    resources: Resources = Resources()
    """What the pods ask for (Kubernetes only); may change only while suspended."""
    scheduling: Scheduling = Scheduling()
    """Queues and priorities (Kubernetes only)."""
    pod_patch: PodPatch = PodPatch()
    """Further fields of the pods (Kubernetes only)."""
    lifecycle: Lifecycle = Lifecycle()
    """How long the run and its objects live (Kubernetes only)."""


class Metadata(Part):
    """Of the object."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=NAME_PATTERN)]
    """Also names branches, so it is a DNS label of at most 40 characters."""
    namespace: Annotated[str, Field(max_length=63, pattern=NAME_PATTERN)] | None = None
    """Kubernetes only: the namespace. Absent: the current one."""
    labels: dict[LabelKey, LabelValue] = {}
    """Labels of the object."""
    annotations: dict[LabelKey, str] = {}
    """Annotations of the object."""


class TrainingRun(Part):
    """The manifest: what `forkcast run` takes and `kubectl apply` takes."""

    api_version: Literal["forkcast.dev/v1alpha1"]
    """The format's version."""
    kind: Literal["TrainingRun"]
    """What the document is."""
    metadata: Metadata
    """Of the object."""
    spec: TrainingRunSpec
    """What to train, on what, and what to do when it goes wrong."""

    def document(self) -> dict[str, Any]:
        """The manifest with every default filled in, ready for JSON or YAML."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

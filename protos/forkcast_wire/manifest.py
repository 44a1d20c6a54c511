"""The TrainingRun manifest, `forkcast.dev/v1alpha1`: one model for the local world and the cluster.

Conventions of the format: camelCase names, enums in CamelCase, integers with a maximum, and decimals
as numbers or as texts (3e-4, "0.98"), for YAML tools disagree on which of the two 3e-4 is.
Every field says what it is and its unit; the reference page in docs/ and the custom resource
definitions are generated from here. The parts stand by subject in manifest_*.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from forkcast.schedules import SCHEDULES, WITH_LENGTH, LearningRate
from forkcast_wire.fields import NAME_PATTERN, Part, Rule, Spelling
from forkcast_wire.manifest_branching import (
    Acceptance,
    ActionChoices,
    Branching,
    Budget,
    Confirm,
    Mode,
    Proxy,
    Rollback,
    TriggerThresholds,
    Uncertainty,
)
from forkcast_wire.manifest_data import (
    HUGGING_FACE,
    STRESSOR_PROBABILITY,
    Data,
    DataStorage,
    Device,
    Dtype,
    IdType,
    MixtureSource,
    Model,
    ModelSize,
    Stressor,
    StressorType,
    TextFormat,
    TextSource,
    Validation,
)
from forkcast_wire.manifest_pods import (
    AnnotationKey,
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
    "FIXED",
    "HUGGING_FACE",
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
    "DataStorage",
    "Device",
    "Dtype",
    "IdType",
    "Images",
    "Lifecycle",
    "Metadata",
    "MixtureSource",
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


def _fields(part: type[Part], path: str, *but: str) -> tuple[str, ...]:
    """The dotted paths of a part's fields, except those named."""
    names = (field.alias or name for name, field in part.model_fields.items())
    return tuple(f"{path}.{name}" for name in names if name not in but)


#: What makes a run the run it is: dotted paths below `spec`. Of `training`, totalSteps may grow.
FIXED: Final = (
    "model",
    "data",
    "stressors",
    "optimizer",
    *_fields(
        Training, "training", "totalSteps", "scheduleSteps", "threads", "changedText", "hangSeconds"
    ),
    "parallelism",
    "storage",
    "managedBy",
)
#: Decimals, which CEL does not see: a cluster cannot refuse their change, `forkcast run` does.
_UNSEEN: Final = ("training.zLoss",)
_WHILE_SUSPENDED = ("resources", "scheduling", "podPatch")
_STEPS = "self.training.scheduleSteps"
_NO_LENGTH = f"is the length of {', '.join(WITH_LENGTH)}; leave it out"
_TOO_LONG = "warm-up and decay are longer than the schedule; lower one of them, or lengthen it"


class TrainingRunSpec(Part):
    """What to train, on what, and what to do when it goes wrong."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *(
            Rule(
                f".{name}",
                f"self.{name} == oldSelf.{name}",
                "cannot change within a run; undo it, or create another TrainingRun",
            )
            for name in FIXED
            if name not in _UNSEEN
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
        Rule(
            ".training.scheduleSteps",
            f"has({_STEPS}) == has(oldS{_STEPS[1:]}) && (!has({_STEPS}) || "
            f"{_STEPS} == oldS{_STEPS[1:]}) || oldSelf.suspend",
            "may change only while the run is suspended; set suspend: true first",
        ),
        Rule(
            ".training.scheduleSteps",
            f"self.optimizer.schedule.type in {list(WITH_LENGTH)} || !has({_STEPS})",
            _NO_LENGTH,
        ),
        Rule(
            ".optimizer.schedule.decaySteps",
            "!has(self.optimizer.schedule.decaySteps) || self.optimizer.schedule.warmupSteps + "
            f"self.optimizer.schedule.decaySteps <= (has({_STEPS}) ? {_STEPS} : "
            "self.training.totalSteps)",
            _TOO_LONG,
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
    """Steps and batches. `totalSteps` may grow, `scheduleSteps` and `threads` may change."""
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
    managed_by: Annotated[str, Field(max_length=63, pattern=f"^$|{NAME_PATTERN}")] = ""
    """Which operator looks after the run: the one with this `managedBy` (Kubernetes only). Absent:
    the one with none. Cannot change."""
    lifecycle: Lifecycle = Lifecycle()
    """How long the run and its objects live (Kubernetes only)."""

    def learning_rate(self) -> LearningRate:
        """The schedule. One without a length is as long as the run."""
        schedule, training = self.optimizer.schedule, self.training
        ends = schedule.type in WITH_LENGTH
        return SCHEDULES[schedule.type](
            peak=self.optimizer.learning_rate,
            low=schedule.min_learning_rate,
            warmup=schedule.warmup_steps,
            steps=(training.schedule_steps or training.total_steps) if ends else None,
            decay_steps=schedule.decay_steps,
            decay_shape=schedule.decay_shape,
        )

    def with_schedule(self, steps: int | None) -> TrainingRunSpec:
        """The spec with the length of its schedule filled in, where it gives none and has one."""
        known = self.training.schedule_steps
        if steps is None or known is not None or self.optimizer.schedule.type not in WITH_LENGTH:
            return self
        training = self.training.model_copy(update={"schedule_steps": steps})
        return self.model_copy(update={"training": training})

    @model_validator(mode="after")
    def _length_of_the_schedule(self) -> Self:
        schedule, training = self.optimizer.schedule, self.training
        if schedule.type not in WITH_LENGTH and training.schedule_steps is not None:
            raise ValueError(f"training.scheduleSteps: {_NO_LENGTH}")
        length = training.schedule_steps or training.total_steps
        decay = schedule.decay_steps
        if decay is not None and schedule.warmup_steps + decay > length:
            raise ValueError(f"optimizer.schedule.decaySteps: {_TOO_LONG}")
        return self


#: Of a TrainingRun's metadata.name.
RUN_NAME: Final = Spelling(
    ("[a-z0-9]([-a-z0-9]*[a-z0-9])?", ".{1,40}"),
    "not a name of at most 40 characters without dots, for it also names branches, Jobs and pods; "
    "use lower-case letters, digits and '-' inside",
)


class Metadata(Part):
    """Of the object."""

    name: Annotated[str, RUN_NAME]
    """Also names branches, so it is a DNS label of at most 40 characters."""
    namespace: Annotated[str, Field(max_length=63, pattern=NAME_PATTERN)] | None = None
    """Kubernetes only: the namespace. Absent: the current one."""
    labels: dict[LabelKey, LabelValue] = {}
    """Labels of the object."""
    annotations: dict[AnnotationKey, str] = {}
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

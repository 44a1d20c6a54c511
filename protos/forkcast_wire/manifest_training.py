"""What a manifest says about the optimizer, the loop, its processes, and what it stores."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from forkcast.schedules import WITH_DECAY
from forkcast_wire.endpoint import Endpoint
from forkcast_wire.fields import (
    PLAIN_PATTERN,
    Decay,
    Decimal,
    NonNegative,
    Part,
    Positive,
    Rule,
    Seed,
    Steps,
    StepsOrZero,
    Uri,
)
from forkcast_wire.manifest_pods import CaRef, SecretRef
from forkcast_wire.shelves import ClippingName, OptimizerName, ScheduleName, having


class Clipping(Part):
    """The run's own clipping policy."""

    policy: ClippingName = "Norm"
    """A name of the trainer's clipping shelf."""
    params: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], Decimal], Field(max_length=16)
    ] = {}
    """Its parameters, as decimals, e.g. {zThreshold: "2.5"}."""


_OF_A_DECAY = f"is of {', '.join(WITH_DECAY)}"


class Schedule(Part):
    """The learning rate's course: a linear warm-up, then what `type` says; docs/optimizers.md has the
    formulas.
    """

    RULES: ClassVar[tuple[Rule, ...]] = tuple(
        Rule(
            f".{field}",
            f"!has(self.{field}) || self.type in {list(WITH_DECAY)}",
            f"{_OF_A_DECAY}; leave it out",
        )
        for field in ("decaySteps", "decayShape")
    )

    type: ScheduleName = "Cosine"
    """Cosine and Linear: down to `minLearningRate` at the schedule's last step, and there from then on.
    WSD: the peak, and down to it over the last `decaySteps` steps. Constant: the peak."""
    warmup_steps: StepsOrZero = 100
    """Steps of the linear warm-up, the last of which has the peak."""
    min_learning_rate: NonNegative = 0.0
    """Where the schedule ends; Constant does not."""
    decay_steps: Steps | None = None
    """WSD only: steps of the decay, the schedule's last ones. Absent: a fifth of the schedule."""
    decay_shape: Literal["OneMinusSqrt", "Linear"] | None = None
    """WSD only: the decay's shape. Absent: OneMinusSqrt."""

    @model_validator(mode="after")
    def _decay_of_its_own(self) -> Self:
        given = {"decaySteps": self.decay_steps, "decayShape": self.decay_shape}
        for field, value in given.items():
            if value is not None and self.type not in WITH_DECAY:
                raise ValueError(f"{field}: {_OF_A_DECAY}; leave it out")
        return self


_TAKES_MOMENTUM = having("optimizers", "takesMomentum")
_KEEPS_SECOND = having("optimizers", "secondMoment")
_NEEDS_SECOND = having("clipping", "needsSecondMoment")
_OF_MOMENTUM = f"is of {', '.join(_TAKES_MOMENTUM)}; leave it out"
_NO_SECOND = (
    f"{', '.join(_NEEDS_SECOND)} needs a second moment of every weight, which only "
    f"{', '.join(_KEEPS_SECOND)} keep; take ZClip, or one of them"
)


class Optimizer(Part):
    """How the weights are updated; weight decay is decoupled, and does not pull on 1-D tensors."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        # that momentum is Muon's alone cannot be said here: CEL sees no decimals
        Rule(
            ".clipping.policy",
            f"!(self.clipping.policy in {_NEEDS_SECOND}) || self.name in {_KEEPS_SECOND}",
            _NO_SECOND,
        ),
    )

    name: OptimizerName = "AdamW"
    """AdamW; AdamW8bit, which keeps the moments of matrices in 8 bits (needs bitsandbytes); Muon for
    the matrices of blocks, with AdamW for all other weights, at one learning rate: docs/optimizers.md."""
    learning_rate: Positive = 6e-4
    """Peak of the schedule."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay of tensors with two and more dimensions."""
    betas: Annotated[tuple[Decay, Decay], Field()] = (0.9, 0.95)
    """AdamW's decays of the two moments."""
    epsilon: Positive = 1e-8
    """AdamW's, added to the root of the second moment."""
    momentum: Decay | None = None
    """Muon only: decay of its momentum. Absent: .95."""
    schedule: Schedule = Schedule()
    """The learning rate's course."""
    clipping: Clipping = Clipping()
    """The run's own clipping policy."""

    @model_validator(mode="after")
    def _of_this_optimizer(self) -> Self:
        if self.momentum is not None and self.name not in _TAKES_MOMENTUM:
            raise ValueError(f"momentum: {_OF_MOMENTUM}")
        if self.clipping.policy in _NEEDS_SECOND and self.name not in _KEEPS_SECOND:
            raise ValueError(f"clipping.policy: {_NO_SECOND}")
        return self


class Training(Part):
    """One step = microBatchSize x gradientAccumulationSteps x processes sequences."""

    total_steps: Steps
    """Optimizer steps in all; may only grow."""
    schedule_steps: Steps | None = None
    """Length of the schedule, its warm-up included; Constant has none. Absent: `totalSteps` of the run's first
    start, so that a run that is extended goes on at `minLearningRate`. May change between two
    starts; on a cluster while the run is suspended."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536, strict=True)] = 8
    """Sequences of one forward and backward pass of one process."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536, strict=True)] = 1
    """Passes of one optimizer step."""
    seed: Seed = 42
    """Seed of the first weights and of dropout."""
    z_loss: Annotated[Decimal, Field(ge=0, le=1)] = 0.0
    """Coefficient of log(Z)^2, which is added to what is differentiated so that the logits do not
    drift (PaLM: 1e-4); losses that are reported stay the cross-entropy alone. 0: off."""
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    """Intra-op threads of each process on the CPU; results are bit-equal only at one count."""
    deterministic: bool = False
    """On a GPU, only kernels that give the same bits each time, so that a resumed run equals an unbroken
    run to the bit; it costs speed, and a model that needs another kernel is refused. On a CPU it is so
    in any case."""
    changed_text: Literal["Refuse", "Accept"] = "Refuse"
    """What a start does if the text or the tokenizer gives other tokens than the run has trained on.
    Accept: it goes on with them, in other windows and with another held-out part: losses before and
    after do not compare."""
    hang_seconds: Annotated[int, Field(ge=0, le=86_400, strict=True)] = 600
    """A process that shows no progress for so long (stuck, or stopped) is named in the log, with where
    it is stuck; all processes are ended and the run is started again from its newest state. Six times
    as long at the start, in the first step and in the last save; without end while it reads the store
    or waits for other processes. Never less than three times the longest step that the process has
    taken; the limit in force is in the log and the status. Three such ends in a row without a step
    between them end `forkcast run` (on a cluster: lifecycle.maxRestarts); 0 watches nothing."""


class Parallelism(Part):
    """Data parallel processes (torchrun): nodes x processesPerNode."""

    nodes: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    """Pods of the trainer, one a node. More than one needs a cluster."""
    processes_per_node: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    """Processes of each, one a GPU."""

    @property
    def processes(self) -> int:
        """All of them: nodes x processes_per_node."""
        return self.nodes * self.processes_per_node


class Statistics(Part):
    """How often the costlier statistics are sampled."""

    internals_every_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10
    """Steps between samples of attention entropy and logits and of activation statistics."""
    update_every_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10
    """Steps between samples of RMS_t, update ratio and update cosine. Norms by group of parameters are
    there at every step."""


class Storage(Part):
    """Where checkpoints, lineage and decisions stand: a folder, or with a bucket any S3 API.
    Neither path nor bucket: the work directory; on a cluster the operator's default store.
    """

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".bucket",
            "has(self.bucket) == has(self.endpoint)",
            "bucket and endpoint go together; set both, or neither for a folder",
        ),
        Rule(
            ".path",
            "!(has(self.path) && has(self.bucket))",
            "path is for a folder, bucket for S3; keep one of them",
        ),
    )

    path: Uri | None = None
    """A folder. Absent: the work directory itself."""
    endpoint: Endpoint | None = None
    """URL of the S3 API: scheme, host and port. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured."""
    bucket: (
        Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] | None
    ) = None
    """Name of the bucket; it must exist."""
    prefix: Annotated[
        str, Field(max_length=512, pattern=r"^(\.?[A-Za-z0-9_-][A-Za-z0-9._-]*/)*$")
    ] = ""
    """What all keys begin with; ends with a slash, and no folder of it is `..`. On a cluster it continues below the run's own
    prefix, `<prefix of the release><namespace>/<name>-<uid>/`."""
    adopt_from: (
        Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")] | None
    ) = None
    """Kubernetes only: name or uid of a former run of the namespace, ended, suspended or deleted with
    its records retained; its records, states and statistics become this run's."""
    region: Annotated[str, Field(max_length=64, pattern=PLAIN_PATTERN)] = "us-east-1"
    """Region that requests are signed for. On a cluster us-east-1 stands for the region that the
    operator's configuration gives the store."""
    credentials_dir: Uri | None = None
    """Folder with the files accessKeyId and secretAccessKey, and sessionToken for temporary keys;
    they may change at any time. Absent: the AWS_* variables, web identity, profile, container or
    instance role; on a cluster the operator sets it to where `secretRef` is mounted."""
    secret_ref: SecretRef | None = None
    """Kubernetes only: the Secret with the credentials. Absent: the operator's default name."""
    ca_file: Uri | None = None
    """PEM file that an https endpoint's certificate is checked against. Absent: the system's; on a
    cluster the operator sets it to where `caRef` is mounted."""
    ca_ref: CaRef | None = None
    """Kubernetes only: where `caFile` comes from."""
    conditional_writes: Literal["Auto", "Required", "Off"] = "Auto"
    """Whether create-only and compare-and-swap writes are used. Auto: if a probe shows that the
    server honours them; on a cluster, what the operator's configuration says of the store."""

    @model_validator(mode="after")
    def _folder_or_bucket(self) -> Self:
        if (self.bucket is None) != (self.endpoint is None):
            raise ValueError("bucket and endpoint go together; set both, or neither for a folder")
        if self.path is not None and self.bucket is not None:
            raise ValueError("path is for a folder, bucket for S3; keep one of them")
        return self


class Checkpoint(Part):
    """Durable checkpoints, and the ring of recent full states from which branches fork."""

    every_steps: Steps = 1000
    """Steps between durable checkpoints."""
    keep_last: Annotated[int, Field(ge=1, le=1000, strict=True)] = 8
    """How many of them are kept, beside the last good one and a few older ones."""
    ring_every_steps: Steps = 50
    """Steps between states of the ring."""
    ring_keep: Annotated[int, Field(ge=2, le=1000, strict=True)] = 8
    """How many states the ring holds."""
    log_spaced_from: StepsOrZero = 50
    """States of step 0, of this step and of twice, four times ... as many are kept in the ring for the
    life of the run: a branch may go back to them, however old they are. 0 keeps none."""
    pinned: Annotated[list[Steps], Field(max_length=64)] = []
    """Steps whose checkpoints are never pruned."""
    compression_level: Annotated[int, Field(ge=0, le=19, strict=True)] = 1
    """Level of zstd, for checkpoints. At 1 it sees the highest byte of each float alone; from 2 on files are
    1 to 2 % smaller and take several times as long; 0 stores raw frames, as ring states always do."""
    optimizer_state: Literal["Full", "Int8"] = "Full"
    """How checkpoints hold the optimizer's moments. Full: to the bit. Int8: those of matrices, but of
    embeddings and heads, in 8 bits; a resume from such a checkpoint is near the unbroken run, not
    equal to it. The weights, and ring states whole, are always to the bit."""

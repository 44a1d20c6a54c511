"""The TrainingRun manifest, `forkcast.dev/v1alpha1`: one model for the local world and the cluster.

Conventions of the format: camelCase names, enums in CamelCase, integers with a maximum, and every
decimal as a quoted string ("0.98"), because a float in a manifest changes with whoever prints it.
Fields say their unit and range; the reference page in docs/ and the CRDs are generated from here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from forkcast_wire.fields import (
    NAME_PATTERN,
    Decay,
    Decimal,
    Fraction,
    NonNegative,
    Part,
    Positive,
    Seed,
    Steps,
    StepsOrZero,
    Uri,
)
from forkcast_wire.manifest_pods import (
    CaRef,
    Images,
    Lifecycle,
    PodPatch,
    Resources,
    Scheduling,
    SecretRef,
)

# -------------------------------------------------------------------------------------------- model


class Dtype(StrEnum):
    """Auto: bf16 where the device has it, else fp32."""

    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    FLOAT32 = "Float32"


class Device(StrEnum):
    """Auto: the GPU where there is one, else the CPU."""

    AUTO = "Auto"
    CPU = "Cpu"
    CUDA = "Cuda"


class ModelSize(Part):
    """Overrides of the architecture's shape; absent fields keep the architecture's own."""

    layers: Annotated[int, Field(ge=1, le=256, strict=True)] | None = None
    heads: Annotated[int, Field(ge=1, le=256, strict=True)] | None = None
    width: Annotated[int, Field(ge=8, le=65536, strict=True)] | None = None
    dropout: Fraction | None = None


class Model(Part):
    """Which model is trained and where its first weights come from.

    architecture: a name of the trainer's model shelf: gpt2-tiny, gpt2, gpt2-medium, gpt2-large.
    source: with init Pretrained, a folder in Hugging Face layout or a hub id.
    """

    architecture: Annotated[str, Field(min_length=1, max_length=63)] = "gpt2"
    size: ModelSize = ModelSize()
    init: Literal["FromScratch", "Pretrained"] = "FromScratch"
    source: Uri | None = None
    dtype: Dtype = Dtype.AUTO
    device: Device = Device.AUTO
    gradient_checkpointing: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _source_goes_with_pretrained(self) -> Self:
        if (self.init == "Pretrained") != (self.source is not None):
            raise ValueError("source: is set exactly when init is Pretrained; set both or neither")
        return self


# --------------------------------------------------------------------------------------------- data


class TextFormat(StrEnum):
    """Auto: by the file's suffix. Dataset: a hub id for the `datasets` library."""

    AUTO = "Auto"
    TEXT = "Text"
    PARQUET = "Parquet"
    DATASET = "Dataset"


class TextSource(Part):
    """Text from a file, a folder, `python-stdlib:` (the standard library's own sources), or a data
    set of the `datasets` library. Relative paths are relative to the manifest.

    max_bytes: stop reading after this much text, bytes; 0 = all of it.
    """

    uri: Uri
    format: TextFormat = TextFormat.AUTO
    config_name: Annotated[str, Field(max_length=256)] | None = None
    split: Annotated[str, Field(min_length=1, max_length=64)] = "train"
    text_column: Annotated[str, Field(min_length=1, max_length=128)] = "text"
    max_bytes: Annotated[int, Field(ge=0, le=2**53 - 1, strict=True)] = 0


class Validation(Part):
    """source: its own text, or absent: the last `fraction` of the training tokens is held out.

    every_steps: steps between validations of max_batches micro-batches; full_every_steps: between
    evaluations of the whole held-out text (one more stands at the end of the run).
    """

    source: TextSource | None = None
    fraction: Annotated[Decimal, Field(gt=0, lt=1)] = 0.02
    every_steps: Steps = 1000
    full_every_steps: Steps = 10_000
    max_batches: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 50


class Data(Part):
    """tokenizer: `bytes` (256 ids and one end-of-text), a folder with tokenizer files, or a hub id."""

    train: TextSource
    validation: Validation = Validation()
    tokenizer: Uri = "bytes"
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576, strict=True)] = 1024
    shuffle_seed: Seed = 17


class StressorType(StrEnum):
    """What a stressor does to the run; see docs/manifest.md."""

    RARE_TOKEN_BURST = "RareTokenBurst"
    LONG_SEQUENCE = "LongSequence"
    TEXT_ARTIFACTS = "TextArtifacts"
    BLOCK_SHUFFLE = "BlockShuffle"
    AGGRESSIVE_WARMUP = "AggressiveWarmup"


#: Probability of a stressor at each step (BlockShuffle: at each interval) where none is given.
STRESSOR_PROBABILITY = {
    StressorType.RARE_TOKEN_BURST: 0.02,
    StressorType.LONG_SEQUENCE: 0.01,
    StressorType.TEXT_ARTIFACTS: 0.01,
    StressorType.BLOCK_SHUFFLE: 0.05,
    StressorType.AGGRESSIVE_WARMUP: 1.0,
}


class Stressor(Part):
    """One seeded disturbance, active at steps in [from_step, to_step).

    to_step: 0 = to the end (AggressiveWarmup: to step 500). magnitude: AggressiveWarmup only, the
    factor on the learning rate.
    """

    type: StressorType
    probability: Fraction | None = None
    magnitude: Annotated[Decimal, Field(gt=0, le=1000)] | None = None
    from_step: StepsOrZero = 0
    to_step: StepsOrZero = 0
    seed: Seed = 1

    @model_validator(mode="after")
    def _window_and_magnitude(self) -> Self:
        if self.to_step and self.to_step <= self.from_step:
            raise ValueError(
                f"toStep: must be > fromStep ({self.to_step} <= {self.from_step}); set 0 for 'to the end'"
            )
        if self.magnitude is not None and self.type is not StressorType.AGGRESSIVE_WARMUP:
            raise ValueError(
                f"magnitude: belongs to AggressiveWarmup, not to {self.type}; remove it"
            )
        return self


# ----------------------------------------------------------------------------------------- training


class Clipping(Part):
    """The run's own clipping policy: a name of the trainer's clipping shelf, with its parameters
    as decimals, e.g. {zThreshold: "2.5"}.
    """

    policy: Literal["None", "Norm", "ZClip", "ARC", "SPAM"] = "Norm"
    params: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], Decimal], Field(max_length=16)
    ] = {}


class Schedule(Part):
    """Linear warm-up over warmup_steps, then Cosine to min_learning_rate at the last step, or
    Constant.
    """

    type: Literal["Cosine", "Constant"] = "Cosine"
    warmup_steps: StepsOrZero = 100
    min_learning_rate: NonNegative = 0.0


class Optimizer(Part):
    """AdamW (decoupled weight decay, no decay on 1-D tensors)."""

    name: Literal["AdamW"] = "AdamW"
    learning_rate: Positive = 6e-4
    weight_decay: NonNegative = 0.1
    betas: Annotated[tuple[Decay, Decay], Field()] = (0.9, 0.95)
    epsilon: Positive = 1e-8
    schedule: Schedule = Schedule()
    clipping: Clipping = Clipping()


class Training(Part):
    """One step = micro_batch_size x gradient_accumulation_steps x processes sequences.

    threads: intra-op threads of each process on the CPU; results are bit-equal only at one count.
    """

    total_steps: Steps
    micro_batch_size: Annotated[int, Field(ge=1, le=65536, strict=True)] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536, strict=True)] = 1
    seed: Seed = 42
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1


class Parallelism(Part):
    """Data parallel processes (torchrun): nodes x processes_per_node."""

    nodes: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    """Pods of the trainer, one a node. More than one needs a cluster."""
    processes_per_node: Annotated[int, Field(ge=1, le=64, strict=True)] = 1

    @property
    def processes(self) -> int:
        """All of them: nodes x processes_per_node."""
        return self.nodes * self.processes_per_node


class Statistics(Part):
    """How often the costlier statistics are sampled, steps: attention entropy and logits,
    activation statistics (internals), and RMS_t, update ratio, cosine (update).
    """

    internals_every_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10
    update_every_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1


# ------------------------------------------------------------------------------ storage, checkpoints


class Storage(Part):
    """Where checkpoints, lineage and decisions stand. Absent bucket: a folder (path; by default
    the work directory itself). With a bucket: any S3 API at `endpoint`; credentials are read from
    the files accessKeyId and secretAccessKey in `credentials_dir`, or from the usual AWS_*
    variables.
    """

    path: Uri | None = None
    endpoint: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^https?://")] | None = (
        None
    )
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] | None = None
    prefix: Annotated[str, Field(max_length=512, pattern=r"^([A-Za-z0-9._-]+/)*$")] = ""
    region: Annotated[str, Field(max_length=64)] = "us-east-1"
    credentials_dir: Uri | None = None
    secret_ref: SecretRef | None = None
    """Kubernetes only: the Secret with the credentials. Absent: the operator's default store's."""
    ca_file: Uri | None = None
    """PEM file that an https endpoint's certificate is checked against. Absent: the system's."""
    ca_ref: CaRef | None = None
    """Kubernetes only: where `ca_file` comes from."""
    conditional_writes: Literal["Auto", "Required", "Off"] = "Auto"

    @model_validator(mode="after")
    def _folder_or_bucket(self) -> Self:
        if (self.bucket is None) != (self.endpoint is None):
            raise ValueError("bucket and endpoint go together; set both, or neither for a folder")
        if self.path is not None and self.bucket is not None:
            raise ValueError("path is for a folder, bucket for S3; keep one of them")
        return self


class Checkpoint(Part):
    """everySteps, keepLast: the durable checkpoints. ring*: recent full states from which branches
    fork. pinned: steps that are never pruned. compressionLevel: of zstd; 0 stores raw frames.
    """

    every_steps: Steps = 1000
    keep_last: Annotated[int, Field(ge=1, le=1000, strict=True)] = 8
    ring_every_steps: Steps = 50
    ring_keep: Annotated[int, Field(ge=2, le=1000, strict=True)] = 8
    pinned: Annotated[list[Steps], Field(max_length=64)] = []
    compression_level: Annotated[int, Field(ge=0, le=19, strict=True)] = 1


# -------------------------------------------------------------------------------------- uncertainty


class SignalWeights(Part):
    """Weights of the signals in the index; they sum to 1."""

    volatility: NonNegative = 0.5
    entropy: NonNegative = 0.3
    disagreement: NonNegative = 0.2

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.volatility + self.entropy + self.disagreement
        if abs(total - 1) > 1e-6:
            raise ValueError(f"weights sum to {total:g}, not to 1; change one of them")
        return self


class TriggerThresholds(Part):
    """z at `consecutive_steps` steps in a row, or `single_z` once. forceEverySteps: a trigger every
    so many steps whatever the index says (0 = off), for tests and evaluations.
    """

    z: Positive = 2.5
    consecutive_steps: Annotated[int, Field(ge=1, le=1000, strict=True)] = 3
    single_z: Positive = 3.2
    force_every_steps: StepsOrZero = 0


class Uncertainty(Part):
    """The detector. Absent fields keep the shipped uncertainty_config.yaml's values.

    warmup_steps: no trigger before that many accepted steps. cooldown_steps: none after a branch.
    forecast_horizon_steps: of the disagreement signal.
    """

    window: Annotated[int, Field(ge=16, le=65536, strict=True)] | None = None
    ema_decay: Decay | None = None
    weights: SignalWeights | None = None
    trigger: TriggerThresholds | None = None
    warmup_steps: StepsOrZero | None = None
    cooldown_steps: StepsOrZero | None = None
    forecast_horizon_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None


# ---------------------------------------------------------------------------------------- branching


class Mode(StrEnum):
    """Disabled: no monitor. Observe: index and triggers only. DryRun: branches are opened, verified
    and recorded, never applied. Enforce: the winner is adopted.
    """

    DISABLED = "Disabled"
    OBSERVE = "Observe"
    DRY_RUN = "DryRun"
    ENFORCE = "Enforce"


class Rollback(Part):
    """depths: wanted distances of base states before the departure, steps, newest first; each
    takes the nearest state at hand at or before it. steps: nothing older than this.
    """

    depths: Annotated[list[StepsOrZero], Field(min_length=1, max_length=8)] = [0, 200]
    steps: Steps = 1000


class ActionChoices(Part):
    """The lattice a branch draws from. data_reorder and skip_batch need research: true."""

    learning_rate_scales: Annotated[
        list[Annotated[Decimal, Field(gt=0, le=10)]], Field(min_length=1, max_length=16)
    ] = [0.8, 0.9, 1.0, 1.1]
    weight_decay_scales: Annotated[
        list[Annotated[Decimal, Field(gt=0, le=10)]], Field(min_length=1, max_length=16)
    ] = [0.5, 1.0, 2.0]
    clipping: Annotated[
        list[Literal["Keep", "ZClip", "ARC", "SPAM", "None"]], Field(min_length=1, max_length=5)
    ] = ["Keep", "ZClip", "ARC", "SPAM", "None"]
    momentum_reset: bool = True
    data_reorder: bool = False
    skip_batch: bool = False


class Acceptance(Part):
    """When a candidate is accepted. margin: nats/token where the shipped table is silent."""

    preset: Literal["Default", "Literal"] = "Default"
    max_risk_quantile: Fraction = 0.2
    max_volatility_ratio: Positive = 1.05
    margin: NonNegative = 0.02


class Confirm(Part):
    """The confirm rung: steps after the trigger (0 = none), and how many finalists go on to it."""

    steps: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 200
    finalists: Annotated[int, Field(ge=1, le=16, strict=True)] = 2


class Budget(Part):
    """max_branches: over the run's life. deadline_seconds: of one branch."""

    max_branches: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 50
    max_per_hundred_thousand_steps: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 30
    deadline_seconds: Annotated[int, Field(ge=1, le=604_800, strict=True)] = 1800


class Branching(Part):
    """What happens on a trigger. rungs: steps after it at which the finalists are compared."""

    mode: Mode = Mode.ENFORCE
    executor: Literal["Auto", "Process", "Pod"] = "Auto"
    """Who runs rollouts: Process, children of the run on this machine; Pod, Jobs of a cluster.
    Auto: Pod on a cluster, Process elsewhere."""
    candidates: Annotated[int, Field(ge=1, le=500, strict=True)] = 128
    top_k: Annotated[int, Field(ge=1, le=16, strict=True)] = 6
    rungs: Annotated[list[Steps], Field(min_length=1, max_length=8)] = [10, 25, 50]
    confirm: Confirm = Confirm()
    max_concurrent_rollouts: Annotated[int, Field(ge=1, le=64, strict=True)] = 2
    search: Literal["Lattice", "Random", "Bandit", "Bayesian"] = "Lattice"
    rollback: Rollback = Rollback()
    actions: ActionChoices = ActionChoices()
    acceptance: Acceptance = Acceptance()
    budget: Budget = Budget()
    research: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.candidates:
            raise ValueError(
                f"topK: must be <= candidates ({self.top_k} > {self.candidates}); lower topK"
            )
        if sorted(set(self.rungs)) != list(self.rungs):
            raise ValueError(f"rungs: must rise, got {self.rungs}; sort them and keep each once")
        if self.confirm.steps and self.confirm.steps <= self.rungs[-1]:
            raise ValueError(
                f"confirm.steps: must exceed the last rung ({self.confirm.steps} <= {self.rungs[-1]}); "
                "raise it, or set 0 for none"
            )
        if (self.actions.data_reorder or self.actions.skip_batch) and not self.research:
            given = "skipBatch" if self.actions.skip_batch else "dataReorder"
            raise ValueError(f"actions.{given}: needs research: true; set it, or remove {given}")
        return self


class Proxy(Part):
    """Who forecasts: the proxy service, or nobody (the heuristic portfolio orders the candidates).

    horizon_steps: how far ahead, at most the steps left.
    """

    mode: Literal["Service", "Heuristic"] = "Service"
    horizon_steps: Steps = 2000
    timeout_seconds: Annotated[Decimal, Field(gt=0, le=600)] = 5.0


# ---------------------------------------------------------------------------------------- the whole


class TrainingRunSpec(Part):
    """What to train, on what, and what to do when it goes wrong."""

    model: Model = Model()
    data: Data
    stressors: Annotated[list[Stressor], Field(max_length=16)] = []
    optimizer: Optimizer = Optimizer()
    training: Training
    parallelism: Parallelism = Parallelism()
    statistics: Statistics = Statistics()
    storage: Storage = Storage()
    checkpoint: Checkpoint = Checkpoint()
    uncertainty: Uncertainty = Uncertainty()
    branching: Branching = Branching()
    proxy: Proxy = Proxy()
    suspend: bool = False
    """Stop the trainer after a checkpoint and every rollout; false goes on from there."""
    image: Images = Images()
    """Container images (Kubernetes only)."""
    resources: Resources = Resources()
    """What the pods ask for (Kubernetes only)."""
    scheduling: Scheduling = Scheduling()
    """Queues and priorities (Kubernetes only)."""
    pod_patch: PodPatch = PodPatch()
    """Further fields of the pods (Kubernetes only)."""
    lifecycle: Lifecycle = Lifecycle()
    """How long the run and its objects live (Kubernetes only)."""


class Metadata(Part):
    """Of the object. The name also names branches, so it is a DNS label of at most 40 characters."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=NAME_PATTERN)]
    namespace: Annotated[str, Field(max_length=63, pattern=NAME_PATTERN)] | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class TrainingRun(Part):
    """The manifest: what `forkcast run` takes and `kubectl apply` takes."""

    api_version: Literal["forkcast.dev/v1alpha1"]
    kind: Literal["TrainingRun"]
    metadata: Metadata
    spec: TrainingRunSpec

    def document(self) -> dict[str, Any]:
        """The manifest with every default filled in, ready for JSON or YAML."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

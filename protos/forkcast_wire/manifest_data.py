"""What a manifest says about the model, the text it learns from, and what disturbs it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from forkcast_wire.endpoint import Endpoint
from forkcast_wire.fields import (
    PLAIN_PATTERN,
    Count,
    Decimal,
    Fraction,
    Part,
    Positive,
    Rule,
    Seed,
    Steps,
    StepsOrZero,
    Uri,
)
from forkcast_wire.manifest_pods import CaRef, SecretRef


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
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1, le=256, strict=True)] | None = None
    """Attention heads of each block; the width is a multiple of them."""
    width: Annotated[int, Field(ge=8, le=65536, strict=True)] | None = None
    """Width of the residual stream."""
    dropout: Fraction | None = None
    """Dropout everywhere in the model."""


#: Before the folder or the hub id of a causal language model.
HUGGING_FACE: Final = "hf:"
_SOURCE_RULE: Final = (
    "is set exactly when init is Pretrained and architecture is not hf:...; set both or neither"
)


class Model(Part):
    """Which model is trained and where its first weights come from."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".source",
            "(self.init == 'Pretrained' && !(has(self.architecture) && "
            "self.architecture.startsWith('hf:'))) == has(self.source)",
            _SOURCE_RULE,
        ),
    )

    architecture: Annotated[str, Field(min_length=1, max_length=1024, pattern=PLAIN_PATTERN)] = (
        "gpt2"
    )
    """A name of the trainer's model shelf: gpt2-tiny, gpt2, gpt2-medium, gpt2-large,
    gpt2-xl; or `hf:` and a folder in Hugging Face layout or a hub id: any causal language model
    of the transformers library, in the size that its config.json says. A relative folder is relative
    to the manifest."""
    size: ModelSize = ModelSize()
    """Overrides of the architecture's shape."""
    init: Literal["FromScratch", "Pretrained"] = "FromScratch"
    """Random first weights, or those of `source`; with `hf:` those beside its config.json."""
    source: Uri | None = None
    """With init Pretrained: a folder in Hugging Face layout, or a hub id. Not with `hf:`, which names
    it."""
    dtype: Dtype = Dtype.AUTO
    """Arithmetic of the forward and backward pass. Auto: bf16 where the device has it, else fp32."""
    device: Device = Device.AUTO
    """Where to train. Auto: the GPU where there is one, else the CPU."""
    qk_norm: bool = False
    """Norm each head's queries and keys before they meet, so that attention logits cannot grow with
    the weights (layer norm with a scale; arXiv 2010.04245, 2302.05442). Of the gpt2 family, from
    scratch; Hugging Face's GPT-2 has none, so such weights are exported as safetensors."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    compile: bool | None = None
    """Compile the model with torch.compile. Absent: on a GPU."""

    @model_validator(mode="after")
    def _source_goes_with_pretrained(self) -> Self:
        named = self.architecture.startswith(HUGGING_FACE)
        if (self.init == "Pretrained" and not named) != (self.source is not None):
            raise ValueError(f"source: {_SOURCE_RULE}")
        return self


class TextFormat(StrEnum):
    """Auto: by the file's suffix. Dataset: a hub id for the `datasets` library. Tokens: ids."""

    AUTO = "Auto"
    TEXT = "Text"
    PARQUET = "Parquet"
    DATASET = "Dataset"
    TOKENS = "Tokens"


class IdType(StrEnum):
    """Of the ids in a file that holds nothing else; little-endian."""

    UINT16 = "UInt16"
    UINT32 = "UInt32"
    INT32 = "Int32"
    INT64 = "Int64"

    @property
    def numpy(self) -> Literal["uint16", "uint32", "int32", "int64"]:
        """Numpy's name of it."""
        return _NUMPY[self]


_NUMPY: Mapping[IdType, Literal["uint16", "uint32", "int32", "int64"]] = {
    IdType.UINT16: "uint16",
    IdType.UINT32: "uint32",
    IdType.INT32: "int32",
    IdType.INT64: "int64",
}


#: A bucket, and what the names of objects begin with.
_S3: Final = "^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"


class TextSource(Part):
    """Text from a file, a folder, the standard library's own sources, or a data set. A file is UTF-8
    or begins with a byte order mark, which is no text; its CRLF and CR become LF; a file of which more
    than one character in a thousand is neither is refused, fewer are replaced and counted in the
    trainer's log. Compressed files (gz, zst, xz, bz2) are unpacked. In a folder hidden files are
    skipped, links followed, and each real file is read once. The text of an end-of-text token is text.
    """

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".uri",
            f"!self.uri.startsWith('s3://') || self.uri.matches('{_S3}')",
            "not s3://BUCKET/PREFIX; give a bucket's name, and what names of its objects begin with",
        ),
        Rule(
            ".uri",
            "!self.uri.startsWith('s3://') || !(self.format in ['Dataset', 'Tokens'])",
            "a bucket holds text; give a folder, or another format",
        ),
    )

    uri: Uri
    """A file or folder, `s3://BUCKET/PREFIX` (an object, or all below a folder; see `s3` of the data),
    `python-stdlib:` (the standard library's own sources), or a hub id of the `datasets` library.
    Relative paths are relative to the manifest."""
    format: TextFormat = TextFormat.AUTO
    """What is at the uri. Auto: by the file's suffix, `.parquet`, JSON lines (`.jsonl`, `.ndjson`,
    `.json`; in a folder `.json` only if compressed), or text. Dataset: a hub id. Tokens: text that is
    tokenised already, used where it is: a `.bin` file, or a folder's `<split>.bin`, or without that all
    its `.bin` files; Megatron-LM's with its `.idx`, a token file of a run with its `.json`, or bare ids
    as nanoGPT writes them."""
    config_name: Annotated[str, Field(max_length=256, pattern=PLAIN_PATTERN)] | None = None
    """Configuration of the data set, e.g. wikitext-103-raw-v1."""
    revision: Annotated[str, Field(min_length=1, max_length=256, pattern=PLAIN_PATTERN)] | None = (
        None
    )
    """Branch, tag or commit of a data set of the hub. Absent: its default branch. The run keeps to the
    commit that it finds at its first start."""
    split: Annotated[str, Field(min_length=1, max_length=64, pattern=PLAIN_PATTERN)] = "train"
    """Split of the data set; of a folder of tokens the file `<split>.bin`, e.g. val."""
    text_column: Annotated[str, Field(min_length=1, max_length=128, pattern=PLAIN_PATTERN)] = "text"
    """Column that holds the text, in Parquet files, JSON lines and data sets."""
    max_bytes: Count = 0
    """Stop reading after this much text, bytes; 0 = all of it. Of tokens: bytes of their file."""
    id_type: IdType | None = None
    """Type of bare ids (format Tokens). Absent: UInt16; an index or a card says it itself."""

    @model_validator(mode="after")
    def _text_in_a_bucket(self) -> Self:
        if self.uri.startswith("s3://"):
            if not re.match(_S3, self.uri):
                raise ValueError(
                    "uri: not s3://BUCKET/PREFIX; give a bucket's name, and what names of its objects "
                    "begin with"
                )
            if self.format in (TextFormat.DATASET, TextFormat.TOKENS):
                raise ValueError("uri: a bucket holds text; give a folder, or another format")
        return self


class DataStorage(Part):
    """The S3 API that `s3://` texts are read from, and the keys for it."""

    endpoint: Endpoint
    """URL of the S3 API: scheme, host and port. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured."""
    region: Annotated[str, Field(max_length=64, pattern=PLAIN_PATTERN)] = "us-east-1"
    """Region that requests are signed for."""
    credentials_dir: Uri | None = None
    """Folder with the files accessKeyId and secretAccessKey, and sessionToken for temporary keys;
    they may change at any time. Absent: the AWS_* variables, web identity, profile, container or
    instance role; on a cluster the operator sets it to where `secretRef` is mounted."""
    secret_ref: SecretRef | None = None
    """Kubernetes only: the Secret with the credentials, in the run's namespace. Absent: what the pods'
    variables and service account give."""
    ca_file: Uri | None = None
    """PEM file that an https endpoint's certificate is checked against. Absent: the system's; on a
    cluster the operator sets it to where `caRef` is mounted."""
    ca_ref: CaRef | None = None
    """Kubernetes only: where `caFile` comes from."""


class MixtureSource(TextSource):
    """A text of a mixture: a source with a name and a weight."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$"),
    ]
    """What progress and errors call it; no other source has this name."""
    weight: Annotated[Positive, Field(le=1_000_000)]
    """Its share of the sequences, as a part of the sum of all weights, whatever its size: a text that
    is used up begins again, in another order."""


class Validation(Part):
    """The held-out text and how often it is looked at."""

    source: TextSource | None = None
    """Its own text. Absent: the last `fraction` of the training tokens is held out, of each text of a
    mixture; they are looked at by weight."""
    fraction: Annotated[Decimal, Field(gt=0, lt=1)] = 0.02
    """Share of the training tokens that is held out where there is no source."""
    every_steps: Steps = 1000
    """Steps between validations of `maxBatches` micro-batches."""
    full_every_steps: Steps = 10_000
    """Steps between evaluations of the whole held-out text; one more stands at the run's end."""
    max_batches: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 50
    """Micro-batches of a validation."""


class Data(Part):
    """The text, how it becomes tokens, and in which order they come."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".train",
            "has(self.train) == (size(self.mixture) == 0)",
            "train is one text, mixture several; give exactly one of them",
        ),
        Rule(
            ".mixture",
            "self.mixture.all(one, self.mixture.exists_one(other, other.name == one.name))",
            "two sources have the same name; rename one",
        ),
    )

    train: TextSource | None = None
    """The training text."""
    mixture: Annotated[list[MixtureSource], Field(max_length=32)] = []
    """Several training texts instead of one, each with its share of the sequences; no sequence holds
    two of them."""
    validation: Validation = Validation()
    """The held-out text."""
    s3: DataStorage | None = None
    """Where `s3://` texts are, if not in the run's own store's server with its keys."""
    tokenizer: Uri = "bytes"
    """`bytes` (256 ids and one end-of-text), a folder with tokenizer files, or a hub id. Of text that is
    all Tokens: the tokenizer that made them, or `bytes` with a `vocabularySize`."""
    vocabulary_size: Annotated[int, Field(ge=2, le=16_777_216, strict=True)] | None = None
    """Ids that the model has, at least the tokenizer's. Absent: the tokenizer's."""
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576, strict=True)] = 1024
    """Tokens of a sequence."""
    shuffle_seed: Seed = 17
    """Seed of the order of the sequences, and of the choice between the texts of a mixture."""

    def texts(self) -> Sequence[tuple[str, TextSource]]:
        """The training texts, each with the field that it stands in."""
        if self.train is not None:
            return [("spec.data.train", self.train)]
        return [(f"spec.data.mixture[{number}]", one) for number, one in enumerate(self.mixture)]

    @model_validator(mode="after")
    def _one_text_or_several(self) -> Self:
        if (self.train is None) == (not self.mixture):
            raise ValueError("train is one text, mixture several; give exactly one of them")
        names = [one.name for one in self.mixture]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"mixture: two sources have the name {twice[0]}; rename one")
        return self


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
    """One seeded disturbance, active at steps in [fromStep, toStep); for tests and evaluations."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ".toStep",
            "self.toStep == 0 || self.toStep > self.fromStep",
            "must be > fromStep; set 0 for 'to the end'",
        ),
    )
    SCHEMA: ClassVar[dict[str, Any]] = {
        "anyOf": [
            {"not": {"required": ["magnitude"]}},
            {"properties": {"type": {"enum": ["AggressiveWarmup"]}}},
        ]
    }

    type: StressorType
    """What it does; the table of stressors stands in docs/manifest.md."""
    probability: Fraction | None = None
    """At each step (BlockShuffle: each interval of 100 steps). Absent: the type's own."""
    magnitude: Annotated[Decimal, Field(gt=0, le=1000)] | None = None
    """AggressiveWarmup only: the factor on the learning rate. Absent: 4."""
    from_step: StepsOrZero = 0
    """First step."""
    to_step: StepsOrZero = 0
    """Step after the last; 0 = to the end (AggressiveWarmup: to step 500)."""
    seed: Seed = 1
    """Seed of its draws."""

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

"""TensorBoard's event files without TensorFlow: TFRecords of Event messages, written and read.

The messages are those of tensorflow/core/util/event.proto and
core/framework/summary.proto, with the fields used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from forkcast_wire import tfrecords

_PACKAGE: Final = "forkcast.tensorboard"
#: Message -> field -> (number, type, message); a type in a list is repeated.
_MESSAGES: Final[dict[str, dict[str, tuple[int, Any, str]]]] = {
    "Event": {
        "wall_time": (1, Field.TYPE_DOUBLE, ""),
        "step": (2, Field.TYPE_INT64, ""),
        "file_version": (3, Field.TYPE_STRING, ""),
        "summary": (5, Field.TYPE_MESSAGE, "Summary"),
        "session_log": (7, Field.TYPE_MESSAGE, "SessionLog"),
    },
    "SessionLog": {"status": (1, Field.TYPE_INT32, "")},
    "Summary": {"value": (1, [Field.TYPE_MESSAGE], "Value")},
    "Value": {
        "tag": (1, Field.TYPE_STRING, ""),
        "simple_value": (2, Field.TYPE_FLOAT, ""),
        "tensor": (8, Field.TYPE_MESSAGE, "Tensor"),
        "metadata": (9, Field.TYPE_MESSAGE, "Metadata"),
    },
    "Metadata": {"plugin_data": (1, Field.TYPE_MESSAGE, "PluginData")},
    "PluginData": {"plugin_name": (1, Field.TYPE_STRING, "")},
    "Tensor": {
        "dtype": (1, Field.TYPE_INT32, ""),
        "shape": (2, Field.TYPE_MESSAGE, "Shape"),
        "string_val": (8, [Field.TYPE_BYTES], ""),
    },
    "Shape": {"dim": (2, [Field.TYPE_MESSAGE], "Dim")},
    "Dim": {"size": (1, Field.TYPE_INT64, "")},
}


def _event_class() -> Any:
    file = FileDescriptorProto(name="forkcast_events.proto", package=_PACKAGE, syntax="proto2")
    for message, contents in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, inner) in contents.items():
            repeated = isinstance(kind, list)
            described.field.add(
                name=name,
                number=number,
                type=kind[0] if repeated else kind,
                label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
                type_name=f".{_PACKAGE}.{inner}" if inner else None,
            )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Event"))


#: The message class; its instances have the fields above.
Event: Final = _event_class()


def record(event: Any) -> bytes:
    """An Event as a record of the file."""
    return tfrecords.record(event.SerializeToString())


def read(path: Path) -> Iterator[Any]:
    """The Events of a file, up to the first record that is cut short or damaged. Raises OSError."""
    with path.open("rb") as file, suppress(tfrecords.RecordError, DecodeError):
        for data in tfrecords.records(file.read):
            yield Event.FromString(data)

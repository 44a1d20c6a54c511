"""Every integer field of a message, found by its descriptor, so that a new field is found too."""

from google.protobuf.descriptor import FieldDescriptor as Kind

_UNSIGNED_32 = {Kind.TYPE_UINT32, Kind.TYPE_FIXED32}
_UNSIGNED_64 = {Kind.TYPE_UINT64, Kind.TYPE_FIXED64}
_SIGNED_32 = {Kind.TYPE_INT32, Kind.TYPE_SINT32, Kind.TYPE_SFIXED32}
_SIGNED_64 = {Kind.TYPE_INT64, Kind.TYPE_SINT64, Kind.TYPE_SFIXED64}
_INTEGERS = _UNSIGNED_32 | _UNSIGNED_64 | _SIGNED_32 | _SIGNED_64
_EDGES = (0, 1, 10_001, 1_000_001, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)


def extremes(field):
    """The values to try, within what the field's type can carry."""
    low, high = {
        **dict.fromkeys(_UNSIGNED_32, (0, 2**32 - 1)),
        **dict.fromkeys(_UNSIGNED_64, (0, 2**64 - 1)),
        **dict.fromkeys(_SIGNED_32, (-(2**31), 2**31 - 1)),
        **dict.fromkeys(_SIGNED_64, (-(2**63), 2**63 - 1)),
    }[field.type]
    return sorted({low, high, *(value for value in _EDGES if low <= value <= high)})


def integers(descriptor, path=()):
    """The paths (tuples of field descriptors) of all integer fields below a message."""
    for field in descriptor.fields:
        here = (*path, field)
        if field.type in _INTEGERS:
            yield here
        elif field.message_type is not None and field.message_type not in [
            one.message_type for one in path
        ]:
            entry = field.message_type
            if entry.GetOptions().map_entry:
                if entry.fields_by_name["value"].type in _INTEGERS:
                    yield (*here, entry.fields_by_name["value"])
            else:
                yield from integers(entry, here)


def name_of(path):
    return ".".join(field.name for field in path)


def put(message, path, value):
    """Set the field: of the first element of a repeated one, for one key of a map."""
    for field in path[:-1]:
        inner = getattr(message, field.name)
        entry = field.message_type
        if entry.GetOptions().map_entry:
            inner["a"] = value
            return
        if field.is_repeated:
            message = inner[0] if len(inner) else inner.add()
        else:
            if not message.HasField(field.name):
                inner.SetInParent()
            message = inner
    last = path[-1]
    if last.is_repeated:
        getattr(message, last.name).append(value)
    else:
        setattr(message, last.name, value)


def cases(descriptor):
    """(path, value) for every integer field and extreme."""
    return [(path, value) for path in integers(descriptor) for value in extremes(path[-1])]

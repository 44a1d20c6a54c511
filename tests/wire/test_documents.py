"""Documents of the store: what is read can be written again."""

import json
from pathlib import Path

import pytest

from forkcast.decision import Decision
from forkcast_wire.documents import Complete, DocumentError, dump, load

COMPLETE = {"epoch": 0, "step": 1, "tokens": 2, "validation_loss": 2.5, "seconds": 1.0}
DECISION = json.loads(
    dump(load(Decision, (Path(__file__).parent / "schema_1" / "accepted.json").read_bytes()))
)


def numbers(value, path=()):
    """The paths to all fractions of a document."""
    if isinstance(value, float):
        yield path
    parts = ()
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in parts:
        yield from numbers(part, (*path, name))


def with_number(document, path, number):
    changed = json.loads(json.dumps(document))
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = "@"
    return json.dumps(changed).replace('"@"', number).encode()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["validation_loss", "seconds"])
def test_a_number_that_could_not_be_written_again_is_refused_by_name(field, number):
    good = load(Complete, json.dumps(COMPLETE).encode())
    assert load(Complete, dump(good)) == good
    with pytest.raises(DocumentError, match=f"Complete: {field}: .*finite number"):
        load(Complete, with_number(COMPLETE, (field,), number))


def test_every_fraction_of_a_decision_is_finite_or_the_place_is_named():
    paths = list(numbers(DECISION))
    assert len(paths) > 10
    assert any(isinstance(name, int) for path in paths for name in path)
    for path in paths:
        with pytest.raises(DocumentError) as refused:
            load(Decision, with_number(DECISION, path, "Infinity"))
        assert str(refused.value).startswith(f"Decision: {path[0]}")


def test_a_document_that_is_far_too_long_is_not_parsed() -> None:
    with pytest.raises(DocumentError, match="too many for a record"):
        load(Complete, b"[" + b"{}," * (3 << 20) + b"{}]")

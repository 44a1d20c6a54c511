"""YAML as kubectl reads it. What is expected here is what kubectl 1.34 printed for the same text."""

from __future__ import annotations

import pytest

from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.manifest_yaml import documents

SCALARS = {
    **dict.fromkeys(["y", "Y", "yes", "Yes", "YES", "on", "true", "True", "TRUE"], True),
    **dict.fromkeys(["n", "N", "no", "NO", "off", "false"], False),
    **dict.fromkeys(["~", "null", "Null", '!!null ""'], None),
    **{text: text for text in ["yEs", "tRUE", "nULL", "1:30", "190:20:30", "2001-01-01", "_1"]},
    **{text: text for text in ["2001-12-14t21:59:43.10-05:00", ".", "-.", "+", "=", "<<", "inf"]},
    **{text: text for text in ["1e400", ".1e400", "0x1p3", "0b", "0x", "0o8", ".e5", "1e", "1.0e"]},
    **{text: text for text in ["0x10000000000000000", "Infinity", "NaN", ".Infinity", "2001-1-1"]},
    "0o17": 15,
    "0O17": 15,
    "017": 15,
    "0_7": 7,
    "00": 0,
    "08": 8,
    "09": 9,
    "0b11": 3,
    "-0b11": -3,
    "+0b1": 1,
    "0B11": 3,
    "0x1F": 31,
    "0X1F": 31,
    "-0x1f": -31,
    "+0x10": 16,
    "0x_F": 15,
    "1_000": 1000,
    "1__0": 10,
    "1_": 1,
    "1e3": 1000,
    "1E+2": 100,
    "1.e2": 100,
    "1e1_0": 10**10,
    "3.0": 3,
    "5.": 5,
    ".5e1": 5,
    "-0": 0,
    "-0.0": 0,
    "+5": 5,
    ".5": 0.5,
    "+.5": 0.5,
    "-.5": -0.5,
    "1_0.5": 10.5,
    ".1_0": 0.1,
    "6.e-3": 0.006,
    "3e-4": 0.0003,
    "3.0e-4": 0.0003,
    "1e-7": 1e-7,
    "1e5": 100_000,
    "0x7fffffffffffffff": 2**63 - 1,
    "0xffffffffffffffff": float(2**64 - 1),
    "9223372036854775808": float(2**63),
    "18446744073709551615": float(2**64 - 1),
    "99999999999999999999": 1e20,
    "1e21": 1e21,
    "!!str 5": "5",
    '!!int "5"': 5,
    "!!int 0x1F": 31,
    "!!float 3": 3,
    '!!float "5.5"': 5.5,
    '!!bool "true"': True,
    "!!binary aGVsbG8=": "hello",
    "!!timestamp 2001-01-01": "2001-01-01",
    "!foo 3": "3",
    '"5"': "5",
    "'yes'": "yes",
    "!!str [a]": ["a"],
    "!!set {a, b}": {"a": None, "b": None},
}


@pytest.mark.parametrize("text", SCALARS)
def test_a_value_is_what_kubectl_reads(text):
    (found,) = documents(f"a: {text}\n")
    assert found == {"a": SCALARS[text]}
    assert type(found["a"]) is type(SCALARS[text])


def test_keys_are_texts_and_merged_as_kubectl_does():
    text = """
base: &b {a: 1, c: 2}
e: {<<: *b, a: 5}
f: {<<: [*b, {a: 9, z: 3}]}
"<<": {b: 2}
g: {1: a, 1.5: b, true: c, 2001-01-01: e, 0x10: f, 1e3: g}
"""
    assert documents(text) == [
        {
            "base": {"a": 1, "c": 2},
            "e": {"a": 5, "c": 2},
            "f": {"a": 1, "c": 2, "z": 3},
            "<<": {"b": 2},
            "g": {"1": "a", "1.5": "b", "true": "c", "2001-01-01": "e", "16": "f", "1000": "g"},
        }
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: !!float x",
        "a: !!null x",
        "a: !!int 5.5",
        "a: {<<: 3}",
        "a: {[b]: 1}",
        "a: {~: 1}",
        "a: .nan",
        "a: -.inf",
        "a: {b: c, d: e: f}",
        "a:\n\tb: 1",
    ],
)
def test_what_kubectl_refuses_is_refused(text):
    with pytest.raises(ManifestError):
        documents(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\n---\n# nothing\n---\na: 1\n---\n", [{"a": 1}]),
        ("a: 1\n...\n", [{"a": 1}]),
        ("a: 1\r\nb: 2\r\n", [{"a": 1, "b": 2}]),
        ("a:\t1\n", [{"a": 1}]),
        ('{"d": 10.0, "e": 1e3, "f": 3.5, "g": "\\ud83d\\ude00"}', [{"d": 10, "e": 1000, "f": 3.5, "g": "😀"}]),
        ("{d: 10.0}", [{"d": 10}]),
        ("", []),
    ],
)  # fmt: skip
def test_documents_are_what_kubectl_reads(text, found):
    assert documents(text) == found

"""An S3 endpoint is scheme, host and port; whatever would be dropped or lead astray is refused."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from forkcast_wire.endpoint import Endpoint
from forkcast_wire.manifest import Storage
from forkcast_wire.store import StoreMisconfigured
from forkcast_wire.store.s3 import S3Store

_ENDPOINT = TypeAdapter(Endpoint)


@pytest.mark.parametrize(
    "given",
    [
        *(
            "http://127.0.0.1:9000",
            "https://s3.example",
            "https://s3.example/",
            "http://[::1]:9000",
        ),
        *("http://minio_1:9000", "http://minio.storage.svc.cluster.local", "https://s3"),
        *("http://10.0.0.7", "https://s3.eu-central-1.amazonaws.com:443"),
    ],
)
def test_addresses_are_taken(given: str) -> None:
    assert _ENDPOINT.validate_python(given) == given


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("http://h:9000/storage/api", "path"),
        ("http://h:9000//", "path"),
        ("http://h:9000?x=1", "query"),
        ("http://h:9000/#top", "fragment"),
        ("http://user:hunter2@h", "user name"),
        ("http://user@h", "user name"),
        ("http://h\r\nX: y", "control"),
        ("http://h h", "spaces"),
        ("http://", "no host"),
        ("http://:9000", "no host"),
        ("http://h:99999", "port"),
        ("http://h:0", "port"),
        ("http://h:nine", "port"),
        ("http://[::1", "IPv6"),
        ("http://[nothing]:1", "IPv6"),
        ("http://169.254.169.254", "metadata"),
        ("http://169.254.0.1:80", "metadata"),
        ("http://0xa9fea9fe", "metadata"),
        ("http://2852039166", "metadata"),
        ("http://[fe80::1]", "metadata"),
        ("http://[::ffff:169.254.169.254]", "metadata"),
        ("http://[fd00:ec2::254]", "metadata"),
        ("http://metadata.google.internal", "metadata"),
        ("http://Metadata.Google.Internal.", "metadata"),
        ("s3:9000", "http"),
        ("ftp://h", "http"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused_without_repeating_it(given: str, rule: str) -> None:
    with pytest.raises(ValidationError) as refused:
        _ENDPOINT.validate_python(given)
    said = refused.value.errors()[0]["msg"]
    assert rule in said
    assert "hunter2" not in said
    storage = Storage.model_construct(endpoint=given, bucket="some")
    with pytest.raises(StoreMisconfigured, match=r"^spec\.storage\.endpoint: ") as named:
        S3Store(storage)
    assert "hunter2" not in str(named.value)

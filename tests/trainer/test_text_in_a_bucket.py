"""Text in a bucket is read in parts, as it would be from a folder, from a real S3 server."""

from __future__ import annotations

import gzip
import io
import tracemalloc

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from forkcast_trainer.data import s3_text
from forkcast_trainer.data.identity import identity_of
from forkcast_trainer.data.published import prepared, publish
from forkcast_trainer.data.sources import locate
from forkcast_trainer.data.tokens import prepare
from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import Data, Storage
from forkcast_wire.store import waiting
from forkcast_wire.store.s3_objects import S3Objects
from tests.versitygw import ACCESS, SECRET, Versitygw
from tests.wire.memory_store import MemoryStore

POEM = "Größe, 東京 and\nplain words.\n" * 40


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    made = Versitygw(tmp_path_factory.mktemp("s3"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def bucket(gateway, request):
    """A bucket of the test's own."""
    name = f"b{abs(hash(request.node.name)) % 10**9}"
    gateway.make_bucket(name)
    client = boto3.client(
        "s3",
        endpoint_url=gateway.endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
    )

    def put(key, content):
        body = content.encode() if isinstance(content, str) else content
        client.put_object(Bucket=name, Key=key, Body=body)

    put.name = name
    return put


def data(gateway, uri, **more):
    s3 = {"endpoint": gateway.endpoint, "credentialsDir": str(gateway.credentials)}
    source = {"uri": uri} | {
        name: more.pop(name) for name in ("format", "maxBytes") if name in more
    }
    return Data.model_validate({"train": source, "sequenceLength": 8, "s3": s3} | more)


def ids(found):
    parts = [part for text in (*found.train, *found.held) for part in text.parts]
    return [one for part in parts for one in part.array.tolist()]


def parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), file, row_group_size=7)
    return file.getvalue()


CONTENTS = {
    "a.txt": POEM.encode(),
    "b c/größe.md": POEM.encode(),
    "c.jsonl": b'{"text": "a row"}\n{"text": "another"}\n' * 30,
    "d.jsonl.gz": gzip.compress(b'{"text": "a packed row"}\n' * 30),
    "e.txt.zst": zstandard.compress(POEM.encode()),
    "f.parquet": parquet([f"row {n}" for n in range(50)]),
}


def test_a_prefix_is_read_as_a_folder_is(gateway, bucket, tmp_path):
    left_out = {".hidden.txt": b"no", "x/.git/a.txt": b"no", "picture.png": b"no", "d/": b""}
    for name, content in {**CONTENTS, **left_out}.items():
        bucket(f"texts/{name}", content)
        if not name.endswith("/"):
            (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "texts" / name).write_bytes(content)
    bucket("texts-of-others/a.txt", "no")
    here = Data.model_validate({"train": {"uri": str(tmp_path / "texts")}, "sequenceLength": 8})
    expected = prepare(here, tmp_path / "here", progress=False)
    for uri in (f"s3://{bucket.name}/texts", f"s3://{bucket.name}/texts/"):
        found = prepare(data(gateway, uri), tmp_path / uri[-1], progress=False)
        assert sorted(ids(found)) == sorted(ids(expected))
        assert found.files[0].count == expected.files[0].count


@pytest.mark.parametrize("name", CONTENTS)
def test_an_object_alone(gateway, bucket, tmp_path, name, monkeypatch):
    monkeypatch.setattr(s3_text, "_PART", 100)  # many requests
    bucket(name, CONTENTS[name])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(CONTENTS[name])
    here = Data.model_validate({"train": {"uri": str(tmp_path / name)}, "sequenceLength": 8})
    expected = prepare(here, tmp_path / "here", progress=False)
    found = prepare(data(gateway, f"s3://{bucket.name}/{name}"), tmp_path / "t", progress=False)
    assert identity_of(found) == identity_of(expected)


def test_a_whole_bucket_and_the_stores_own_keys(gateway, bucket, tmp_path):
    bucket("a.txt", POEM)
    storage = Storage(
        endpoint=gateway.endpoint,
        bucket="runs",
        prefix="a/b/",
        credentials_dir=str(gateway.credentials),
    )
    given = data(gateway, f"s3://{bucket.name}").model_copy(update={"s3": None})
    texts = locate(given, storage)
    assert prepare(given, tmp_path / "t", progress=False, texts=texts).files[0].count > 1000
    with pytest.raises(DataError, match=r"^spec\.data\.s3: is not set, and the run's store is a"):
        locate(given, Storage())


def test_the_version_is_of_the_name_and_a_rollout_reads_nothing(
    gateway, bucket, tmp_path, monkeypatch
):
    bucket("a.txt", POEM)
    given = data(gateway, f"s3://{bucket.name}/a.txt")
    store, found = MemoryStore(), prepare(given, tmp_path / "t", progress=False)
    publish(store, found.files)
    with monkeypatch.context() as patch:
        patch.setattr(S3Objects, "part", None)
        again = prepared(store, given, tmp_path / "other", progress=False)
        assert identity_of(again) == identity_of(found)
    bucket("a.txt", POEM[::-1])  # of as many bytes
    other = prepare(given, tmp_path / "t", progress=False)
    assert identity_of(other) != identity_of(found)


def test_no_more_is_held_or_asked_for_than_needed(gateway, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_text, "_PART", 1 << 20)
    size = 24 << 20
    bucket("big.txt", b"some words of a text.\n" * (size // 22))
    asked, part = [], S3Objects.part

    def noted(self, name, etag, first, count):
        asked.append(count)
        return part(self, name, etag, first, count)

    monkeypatch.setattr(S3Objects, "part", noted)
    given = data(gateway, f"s3://{bucket.name}/big.txt", maxBytes=2_000_000)
    prepare(given, tmp_path / "less", progress=False, workers=1)
    assert sum(asked) <= 4 << 20
    asked.clear()
    tracemalloc.start()
    try:
        prepare(
            data(gateway, f"s3://{bucket.name}/big.txt"), tmp_path / "t", progress=False, workers=1
        )
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(asked) <= 1 << 20
    assert most < size / 2


def test_text_that_changes_while_it_is_read_is_refused(gateway, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_text, "_PART", 200)
    bucket("a.txt", POEM)
    part = S3Objects.part

    def changes(self, name, etag, first, count):
        if first:
            bucket("a.txt", POEM[::-1])
        return part(self, name, etag, first, count)

    monkeypatch.setattr(S3Objects, "part", changes)
    with pytest.raises(
        DataError, match=r"^spec\.data\.train\.uri: s3://.*/a\.txt has changed since"
    ):
        prepare(data(gateway, f"s3://{bucket.name}/a.txt"), tmp_path / "t", progress=False)
    assert not list((tmp_path / "t").glob("*.bin"))


def test_a_server_that_is_away_is_waited_for(gateway, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_text, "_PART", 400)
    monkeypatch.setattr(waiting, "FIRST_WAIT", 0.01)
    bucket("a.txt", POEM)
    part, killed = S3Objects.part, []

    def away(self, name, etag, first, count):
        if first == 400 and not killed:
            killed.append(True)
            gateway.kill()
        try:
            return part(self, name, etag, first, count)
        except Exception:
            gateway.start()
            raise

    monkeypatch.setattr(S3Objects, "part", away)
    found = prepare(data(gateway, f"s3://{bucket.name}/a.txt"), tmp_path / "t", progress=False)
    assert killed
    assert found.files[0].count == len(POEM.encode()) + 1


@pytest.mark.parametrize("wrong", ["bucket", "keys", "no keys", "nothing", "no text", "endpoint"])
def test_what_is_wrong_is_told_in_one_line(gateway, bucket, tmp_path, wrong):
    given, field = data(gateway, f"s3://{bucket.name}/a"), "spec.data.train.uri"
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "accessKeyId").write_text("somebody")
    (keys / "secretAccessKey").write_text("guesses")
    if wrong == "bucket":
        given, said = data(gateway, "s3://nowhere-at-all/a"), "no bucket nowhere-at-all; create it"
    elif wrong == "keys":
        said = "check the keys and rights of spec.data.s3"
        access = given.s3.model_copy(update={"credentials_dir": str(keys)})
        given = given.model_copy(update={"s3": access})
    elif wrong == "no keys":
        said = "spec.data.s3.credentialsDir"
        access = given.s3.model_copy(update={"credentials_dir": str(tmp_path / "none")})
        given = given.model_copy(update={"s3": access})
    elif wrong == "endpoint":
        said, field = "spec.data.s3", "spec.data.s3"
        access = given.s3.model_copy(update={"ca_file": str(tmp_path / "none")})
        given = given.model_copy(update={"s3": access})
    else:
        said = "holds no .jsonl, .md"
        if wrong == "no text":
            bucket("a/b.png", "x")
    with pytest.raises(DataError) as caught:
        locate(given)
    assert str(caught.value).startswith(field)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "guesses" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        {"uri": "s3://"},
        {"uri": "s3:///a"},
        {"uri": "s3://UPPER/a"},
        {"uri": "s3://fine", "format": "Tokens"},
        {"uri": "s3://fine", "format": "Dataset"},
    ],
)
def test_what_is_no_place_in_a_bucket_is_refused(source):
    with pytest.raises(ValidationError, match="bucket"):
        Data.model_validate({"train": source})

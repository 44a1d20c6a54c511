"""Data sets of the hub: streamed, at the commit that the run found at its first start. The library is the real
one, in processes of their own, for it reads the hub's address when it is imported.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkcast_trainer.data.hub import commits_of, name_of, pinned
from forkcast_trainer.data.sources import locate
from forkcast_wire import keys
from forkcast_wire.documents import RunInfo, TextCommits, TextIdentity, dump, load
from forkcast_wire.manifest import Data, TextSource, TrainingRun
from tests.trainer.conftest import text_manifest
from tests.trainer.hub_server import serving
from tests.wire.memory_store import MemoryStore

NAME = "me/words"
FILE = "data/train-00000-of-00001.parquet"


def parquet(rows, column="text"):
    file = io.BytesIO()
    pq.write_table(pa.table({column: rows}), file, compression="none", use_dictionary=False)
    return file.getvalue()


@pytest.fixture
def hub():
    with serving() as served:
        yield served


def environment(hub, tmp_path, **more):
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "HF_TOKEN": "",
        **more,
    }


_CHILD = """
import json, sys, tempfile
from pathlib import Path
from forkcast_trainer.data.published import prepared
from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import Data
from tests.wire.memory_store import MemoryStore

for line in sys.stdin:
    store, data = MemoryStore(), Data.model_validate_json(line)
    try:
        found = prepared(store, data, Path(tempfile.mkdtemp()), progress=False)
        said = sum(text.count for text in (*found.train, *found.held))
    except DataError as error:
        said = str(error)
    print("said", json.dumps([said, {k: v.decode() for k, v in store.objects.items() if "commits" in k}]))
"""


def said_of(hub, tmp_path, *sources, **variables):
    """What a process says of each source: how many tokens, or why not; and what it has pinned."""
    given = [
        json.dumps({"train": {"uri": NAME, "format": "Dataset"} | one, "sequenceLength": 8})
        for one in sources
    ]
    ended = subprocess.run(
        [sys.executable, "-c", _CHILD],
        cwd=Path(__file__).parents[2],
        env=environment(hub, tmp_path, **variables),
        input="\n".join(given),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line[5:] for line in ended.stdout.splitlines() if line.startswith("said ")]
    assert len(lines) == len(sources), ended.stderr
    return [json.loads(line) for line in lines]


def tokens_of(rows):
    return sum(len(row.encode()) + 1 for row in rows)


OLD, NEW = [f"old row {n}" for n in range(40)], [f"a newer row {n}" for n in range(40)]
HELD, OTHER = ["held out"] * 9, ["of the subset"] * 30


def test_revision_subset_split_and_column_are_those_asked_for(hub, tmp_path):
    old = hub.push(NAME, {FILE: parquet(OLD)}, tag="v1")
    new = hub.push(
        NAME, {FILE: parquet(NEW), "data/validation-00000-of-00001.parquet": parquet(HELD)}
    )
    configs = "---\nconfigs:\n- config_name: a\n  data_files: a.parquet\n- config_name: b\n  data_files: b.parquet\n---\n"
    several = {
        "README.md": configs.encode(),
        "a.parquet": parquet(OLD),
        "b.parquet": parquet(OTHER, "body"),
    }
    subsets = hub.push("me/subsets", several)
    found = said_of(
        hub,
        tmp_path,
        {},
        {"revision": "v1"},
        {"revision": old},
        {"split": "validation"},
        {"uri": "me/subsets", "configName": "b", "textColumn": "body"},
    )
    expected = [
        (NEW, new, ""),
        (OLD, old, "v1"),
        (OLD, old, old),
        (HELD, new, ""),
        (OTHER, subsets, ""),
    ]
    for (said, pins), (rows, commit, revision), name in zip(
        found, expected, [*[NAME] * 4, "me/subsets"], strict=True
    ):
        assert said == tokens_of(rows)
        commits = load(TextCommits, pins[keys.TEXT_COMMITS].encode()).commits
        assert commits == {f"{name}@{revision}": commit}


def test_a_private_data_set_is_read_with_the_token_of_the_environment(hub, tmp_path):
    hub.push(NAME, {FILE: parquet(OLD)}, token="hf_secret")
    ((refused, _),) = said_of(hub, tmp_path, {})
    assert refused.startswith("spec.data.train.uri: me/words: no such data set, or it is private; ")
    assert "HF_TOKEN" in refused
    ((said, _),) = said_of(hub, tmp_path, {}, HF_TOKEN="hf_secret")
    assert said == tokens_of(OLD)


def test_what_is_not_there_is_told_in_one_line(hub, tmp_path):
    hub.push(NAME, {FILE: parquet(OLD)})
    found = said_of(
        hub,
        tmp_path,
        {"uri": "me/nothing"},
        {"revision": "v9"},
        {"textColumn": "body"},
        {"split": "test"},
    )
    fields = [
        "uri: me/nothing: no such",
        "revision: me/words has no revision v9",
        "textColumn: no such",
        "uri: data set me/words cannot be loaded",
    ]
    for (said, _), field in zip(found, fields, strict=True):
        assert said.startswith(f"spec.data.train.{field}")
        assert "\n" not in said


def test_no_more_is_loaded_than_is_read(hub, tmp_path):
    files = {
        f"data/train-{n:05}-of-00003.parquet": parquet([f"{n} " + "x" * 1000] * 2000)
        for n in range(3)
    }
    hub.push(NAME, files)
    ((said, _),) = said_of(hub, tmp_path, {"maxBytes": 50_000})
    assert 50_000 <= said <= 50_100
    sent = {path for method, path, size in hub.asked if size and "/resolve/" in path}
    assert len(sent) == 1
    cached = (tmp_path / "huggingface").rglob("*")
    assert sum(one.stat().st_size for one in cached if one.is_file()) < 100_000


def test_a_push_does_not_change_a_run(hub, tmp_path):
    old = hub.push(NAME, {FILE: parquet(OLD)})
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))

    def start(total):
        document = text_manifest(tmp_path, total).document()
        document["spec"]["data"] = {
            "train": {"uri": NAME, "format": "Dataset"},
            "sequenceLength": 16,
        }
        manifest = TrainingRun.model_validate(document)
        (run / "manifest.json").write_text(json.dumps(manifest.document()))
        command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
        return subprocess.run(
            command,
            cwd=run,
            env=environment(hub, tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )

    assert start(2).returncode == 0
    before = load(TextIdentity, (run / keys.TEXT).read_bytes())
    assert load(TextCommits, (run / keys.TEXT_COMMITS).read_bytes()).commits == {f"{NAME}@": old}
    new = hub.push(NAME, {FILE: parquet(NEW)})
    shutil.rmtree(run / "tokens")
    shutil.rmtree(tmp_path / "huggingface")
    hub.asked.clear()
    again = start(4)
    assert again.returncode == 0, again.stderr
    assert load(TextIdentity, (run / keys.TEXT).read_bytes()) == before
    assert not any(new in path for _, path, _ in hub.asked)
    assert any(old in path for _, path, _ in hub.asked)


def test_a_run_that_began_without_a_pin_goes_on_without(tmp_path):
    store = MemoryStore({keys.TEXT: b"{}"})
    data = Data(train=TextSource(uri="me/words", format="Dataset"))
    assert commits_of(store, data) == {}
    assert list(store.objects) == [keys.TEXT]


def test_a_commit_that_is_pinned_is_of_the_tokens_name():
    source = TextSource(uri="me/words", format="Dataset")
    data = Data(train=source)
    commits = [{}, {name_of(source): "a" * 40}, {name_of(source): "b" * 40}]
    names = {locate(data, None, one).train[0].name for one in commits}
    assert len(names) == 3
    assert pinned(source, {}) is source


def test_a_folder_is_no_data_set_of_the_hub(tmp_path):
    data = Data(train=TextSource(uri=str(tmp_path), format="Dataset"))
    assert commits_of(MemoryStore(), data) == {}


def test_a_hub_that_is_away_is_left_to_the_librarys_cache(tmp_path):
    with serving() as gone:
        pass
    ((said, pins),) = said_of(gone, tmp_path, {})
    assert said.startswith("spec.data.train.uri: data set me/words cannot be loaded")
    assert pins == {}

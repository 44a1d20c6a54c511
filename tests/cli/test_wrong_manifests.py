"""Every wrong manifest ends in one line that names field, rule and remedy, and exit code 2."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from forkcast_wire.manifest_file import (
    ManifestError,
    absent_secrets,
    load_manifest,
    refuse_cluster_only,
)

GOOD = """\
apiVersion: forkcast.dev/v1alpha1
kind: TrainingRun
metadata:
  name: one
spec:
  data:
    train: {uri: text.txt}
  training: {totalSteps: 10}
"""


def _spec(lines):
    return GOOD + "".join(f"  {line}\n" for line in lines.splitlines())


# name: (manifest, what the line must say)
WRONG = {
    "top_k_over_candidates": (
        _spec("branching: {topK: 8, candidates: 4}"),
        ["spec.branching.topK", "8 > 4", "lower topK"],
    ),
    "unknown_field": (_spec("branching: {topk: 4}"), ["spec.branching.topk", "mean topK"]),
    "unknown_part": (_spec("branchin: {}"), ["spec.branchin", "mean branching"]),
    "negative_weight": (
        _spec('uncertainty: {weights: {volatility: "-0.5", entropy: "1", disagreement: "0.5"}}'),
        ["spec.uncertainty.weights.volatility", "greater than or equal to 0"],
    ),
    "weights_sum": (
        _spec('uncertainty: {weights: {volatility: "0.9", entropy: "0.3", disagreement: "0.2"}}'),
        ["spec.uncertainty.weights", "sum to 1, not 1.4"],
    ),
    "unknown_signal": (
        _spec('uncertainty: {weights: {volatilty: "1"}}'),
        ["spec.uncertainty.weights", "one of volatility, entropy", "did you mean volatility"],
    ),
    "unknown_clipping": (
        _spec("optimizer: {clipping: {policy: ZClp}}"),
        ["spec.optimizer.clipping.policy", "one of None", "did you mean ZClip"],
    ),
    "unknown_choice": (
        _spec("branching: {actions: {clipping: [Keep, Hard]}}"),
        ["spec.branching.actions.clipping", "one of Keep, None", "Hard"],
    ),
    "decay_of_one": (_spec('uncertainty: {emaDecay: "1.0"}'), ["emaDecay", "less than 1"]),
    "switch_for_a_decimal": (
        _spec("optimizer: {learningRate: true}"),
        ["spec.optimizer.learningRate", "not a decimal: True", "0.98"],
    ),
    "not_a_decimal": (_spec('optimizer: {learningRate: "fast"}'), ["learningRate", "fast"]),
    "bad_enum": (_spec("branching: {mode: Enforced}"), ["spec.branching.mode", "Enforce"]),
    "bad_policy": (_spec("branching: {policy: ladder}"), ["spec.branching.policy", "Ladder"]),
    "bad_literal": (_spec("branching: {search: Grid}"), ["spec.branching.search", "Lattice"]),
    "falling_rungs": (_spec("branching: {rungs: [25, 10]}"), ["spec.branching.rungs", "rise"]),
    "confirm_inside_rungs": (
        _spec("branching: {confirm: {steps: 40}}"),
        ["spec.branching.confirm.steps", "exceed"],
    ),
    "research_only": (
        _spec("branching: {actions: {skipBatch: true}}"),
        ["skipBatch", "research: true"],
    ),
    "bucket_without_endpoint": (
        _spec("storage: {bucket: somewhere}"),
        ["spec.storage", "endpoint"],
    ),
    "stressor_backwards": (
        _spec("stressors: [{type: LongSequence, fromStep: 9, toStep: 3}]"),
        ["spec.stressors[0]", "toStep"],
    ),
    "zero_steps": (GOOD.replace("totalSteps: 10", "totalSteps: 0"), ["totalSteps", "got 0"]),
    "calm_backwards": (
        _spec("uncertainty: {calmSteps: -1}"),
        ["spec.uncertainty.calmSteps", "greater than or equal to 0", "got -1"],
    ),
    "calm_as_text": (
        _spec('uncertainty: {calmSteps: "1000"}'),
        ["spec.uncertainty.calmSteps", "integer"],
    ),
    "steps_as_text": (
        GOOD.replace("totalSteps: 10", 'totalSteps: "10"'),
        ["spec.training.totalSteps", "integer"],
    ),
    "missing_steps": (GOOD.replace("totalSteps: 10", "seed: 1"), ["totalSteps", "required"]),
    "bad_name": (GOOD.replace("name: one", "name: One_Run"), ["metadata.name", "lower-case"]),
    "wrong_kind": (GOOD.replace("kind: TrainingRun", "kind: Job"), ["kind", "TrainingRun"]),
    "wrong_version": (GOOD.replace("v1alpha1", "v1"), ["apiVersion", "v1alpha1"]),
    "duplicate_key": (_spec("model: {}\nmodel: {}"), ["line 10", "duplicate key 'model'"]),
    "merged_over": (_spec("training: {seed: 1, <<: {seed: 2}}"), ["duplicate key 'training'"]),
    "merge_behind": (
        GOOD.replace("{totalSteps: 10}", "{totalSteps: 10, <<: {totalSteps: 2}}"),
        ["line 8", "<< behind 'totalSteps'", "write << first"],
    ),
    "snake_case": (
        GOOD.replace("totalSteps: 10", "totalSteps: 10, micro_batch_size: 2"),
        ["spec.training.micro_batch_size", "unknown field", "mean microBatchSize"],
    ),
    "steps_in_snake_case": (
        GOOD.replace("totalSteps", "total_steps"),
        ["spec.training.totalSteps: is required"],
    ),
    "switch_as_text": (_spec('suspend: "true"'), ["spec.suspend", "boolean", "'true'"]),
    "label": (GOOD.replace("name: one", "name: one\n  labels: {a: -b}"), ["metadata.labels.a"]),
    "bool_tag": (_spec("suspend: !!bool x"), ["line 9", "not YAML: 'x' is no !!bool"]),
    "int_tag": (_spec('a: !!int ""'), ["line 9", "'' is no !!int"]),
    "float_tag": (_spec('a: !!float ""'), ["line 9", "'' is no !!float"]),
    "timestamp_tag": (_spec("a: !!timestamp x"), ["line 9", "'x' is no !!timestamp"]),
    "long_hex": (_spec(f"a: 0x{'f' * 5000}"), ["spec.a", "unknown field"]),
    "long_integer": (_spec(f"suspend: {'9' * 5000}"), ["spec.suspend", "'9999"]),
    "half_a_character": (_spec('model: {architecture: "\\ud800"}'), ["line 9"]),
    "half_in_json": (
        '{"apiVersion": "forkcast.dev/v1alpha1", "kind": "\\ud800"}',
        ["half a character", "ud800"],
    ),
    "json_twice": ('{"kind": 1, "kind": 2}', ["duplicate key 'kind'"]),
    "endless": (_spec("a: .inf"), ["line 9", "no JSON number"]),
    "null_in_uri": (
        GOOD.replace("text.txt", '"a\\0b"'),
        ["spec.data.train.uri", "control", r"\x00"],
    ),
    "null_in_tokenizer": (
        GOOD.replace("text.txt}", 'text.txt}\n    tokenizer: "a\\0"'),
        ["spec.data.tokenizer", "control characters"],
    ),
    "null_in_store": (_spec('storage: {path: "a\\0"}'), ["spec.storage.path", "control"]),
    "null_in_credentials": (
        _spec('storage: {credentialsDir: "a\\0", caFile: "\\0"}'),
        ["spec.storage.credentialsDir", "control characters"],
    ),
    "long_name_of_a_text": (GOOD.replace("text.txt", "a" * 300), ["uri", "does not exist"]),
    "long_name_of_a_store": (_spec(f"storage: {{path: {'a' * 300}}}"), ["path", "name too long"]),
    "loop_of_links": (GOOD.replace("text.txt", "loop"), ["spec.data.train.uri", "loop"]),
    "tokenizer_in_a_loop": (
        GOOD.replace("text.txt}", "text.txt}\n    tokenizer: loop"),
        ["spec.data.tokenizer", "loop"],
    ),
    "store_in_a_loop": (_spec("storage: {path: loop}"), ["spec.storage.path", "loop"]),
    "text_is_a_fifo": (GOOD.replace("text.txt", "fifo"), ["uri", "fifo is no regular file"]),
    "text_is_endless": (GOOD.replace("text.txt", "/dev/zero"), ["uri", "is no regular file"]),
    "tab": (GOOD.replace("  training", "\ttraining"), ["line 8", "tab"]),
    "broken_yaml": (GOOD + "  model: {\n", ["not YAML", "line"]),
    "alias_bomb": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        ["more than 20000 values"],
    ),
    "in_itself": (_spec("model: &m {size: *m}"), ["line 9", "'m' contains itself"]),
    "no_anchor": (_spec("model: *m"), ["line 9", "no anchor 'm'"]),
    "deep": ("[" * 5000, ["not YAML", "line 1"]),
    "deep_json": ('{"a":' * 900 + "1" + "}" * 900, ["too deep"]),
    "directive": ("%YAML 1.1\n---\n" + GOOD, ["directive", "remove it"]),
    "empty": ("", ["empty"]),
    "only_a_comment": ("# nothing\n", ["empty"]),
    "two_documents": (GOOD + "---\n" + GOOD, ["2 TrainingRuns"]),
    "a_list": ("- a\n- b\n", ["not a mapping"]),
    "spec_is_a_list": (GOOD[: GOOD.index("spec:")] + "spec: []\n", ["spec", "a list of 0"]),
    "python_tag": ("a: !!python/object:os.system {}\n", ["apiVersion", "required"]),
    "text_missing": (GOOD.replace("text.txt", "gone.txt"), ["spec.data.train.uri", "not exist"]),
    "text_empty": (GOOD.replace("text.txt", "empty.txt"), ["spec.data.train.uri", "empty"]),
    "folder_without_text": (
        GOOD.replace("text.txt", "hollow"),
        ["spec.data.train.uri", "no text files"],
    ),
    "store_is_a_file": (_spec("storage: {path: text.txt}"), ["spec.storage.path", "folder"]),
    "tokenizer_missing": (
        GOOD.replace("text.txt}", "text.txt}\n    tokenizer: .tmp/bpe"),
        ["spec.data.tokenizer", "no such folder: /", "/.tmp/bpe", "hub id"],
    ),
    "tokenizer_deep": (
        GOOD.replace("text.txt}", "text.txt}\n    tokenizer: made/up/tok"),
        ["spec.data.tokenizer", "no such folder: /", "/made/up/tok"],
    ),
    "tokenizer_is_a_file": (
        GOOD.replace("text.txt}", "text.txt}\n    tokenizer: text.txt"),
        ["spec.data.tokenizer", "is a file", "the folder it stands in"],
    ),
    "weights_missing": (
        _spec("model: {init: Pretrained, source: ./weights}"),
        ["spec.model.source", "no such folder: /", "/weights"],
    ),
    "validation_missing": (
        GOOD.replace(
            "{uri: text.txt}", "{uri: text.txt}\n    validation: {source: {uri: gone.txt}}"
        ),
        ["spec.data.validation.source.uri", "not exist"],
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text("some text\n" * 50)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.mark.parametrize("name", WRONG)
def test_wrong_manifest(folder, name):
    text, said = WRONG[name]
    path = folder / "m.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.field
    assert caught.value.rule
    assert caught.value.remedy
    for word in said:
        assert word in line, line


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("latin1.yaml", GOOD.encode() + b"# caf\xe9\n", "not UTF-8"),
        ("large.yaml", b"#" * (1 << 20) + b"\n", "256 KiB"),
        ("null.yaml", GOOD.encode() + b"\x00", "not YAML"),
    ],
)
def test_wrong_bytes(folder, name, data, said):
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=said):
        load_manifest(path)


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "/dev/null", "loop", "a" * 300, "a\0b"])
def test_what_is_no_manifest_file_is_refused(folder, name):
    with pytest.raises(ManifestError) as caught:
        load_manifest(folder / name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"a: [" + b"1," * (1 << 19) + b"]",
        b"".join(b"k%d: 1\n" % i for i in range(95_000)),
        b"a: [" + b"1:1:1:1:1:1," * 20_000 + b"]",
        b"a: " + b":".join([b"59"] * 80_000),
        b"[" * 200_000,
        b"a: '" + b"x" * 250_000,
    ],
    ids=["list", "keys", "sexagesimals", "sexagesimal", "deep", "text"],
)
def test_however_much_there_is_little_of_it_is_made(folder, data, monkeypatch):
    """Bounded by bytes and by values, not by a clock: the loader makes at most so many events."""
    made = 0
    parse = yaml.parse

    def counted(*arguments, **more):
        nonlocal made
        for event in parse(*arguments, **more):
            made += 1
            yield event

    monkeypatch.setattr(yaml, "parse", counted)
    path = folder / "m.yaml"
    path.write_bytes(data)
    with pytest.raises(ManifestError):
        load_manifest(path)
    assert made <= 20_010


def test_every_fault_is_told(folder):
    path = folder / "m.yaml"
    path.write_text(
        GOOD.replace("totalSteps", "total_steps").replace("kind: T", "kind: t")
        + "  branchin: {topK: 99}\n  branching: {topK: 99, mode: enforced, rungs: [0]}\n"
        + "  optimizer: {learning_rate: 3e-4, epsilon: yes}\n"
    )
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    lines = caught.value.lines()
    for field, said in (
        ("kind", "TrainingRun"),
        ("spec.training.totalSteps", "is required"),
        ("spec.training.total_steps", "did you mean totalSteps?"),
        ("spec.branchin", "did you mean branching?"),
        ("spec.branching.topK", "16"),
        ("spec.branching.mode", "did you mean Enforce?"),
        ("spec.branching.rungs[0]", "1"),
        ("spec.optimizer.learning_rate", "did you mean learningRate?"),
        ("spec.optimizer.epsilon", "not a decimal: True"),
    ):
        assert any(one.startswith(f"{field}: ") and said in one for one in lines), lines
    assert len(lines) == 9


def test_everything_that_is_missing_is_told(folder):
    path = folder / "m.yaml"
    lines = "storage: {path: text.txt}\nmodel: {init: Pretrained, source: ./weights}"
    path.write_text(_spec(lines).replace("text.txt}\n", "gone.txt}\n    tokenizer: text.txt\n", 1))
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert [one.split(":")[0] for one in caught.value.lines()] == [
        "spec.data.train.uri",
        "spec.data.tokenizer",
        "spec.model.source",
        "spec.storage.path",
    ]


@pytest.mark.parametrize(
    ("lines", "secret"),
    [
        ("storage: {endpoint: 'ftp://user:hunter2@h', bucket: abc}", "hunter2"),
        ("model: {architecture: 'password=hunter2 \t'}", "hunter2"),
        ('podPatch: {env: [{name: HF_TOKEN, value: "hunter2\\0"}]}', "hunter2"),
        ("training: {totalSteps: 10, seed: 'http://user:hunter2@h'}", "hunter2"),
        ('model: {architecture: "\\e[31mred\\r\\nred"}', "\x1b"),
        ('"\\e[31m\\u202E": 1', "\x1b"),
    ],
)
def test_neither_secrets_nor_control_characters_are_echoed(folder, lines, secret):
    path = folder / "m.yaml"
    path.write_text(_spec(lines).replace("  training: {totalSteps: 10}\n", "", "training" in lines))
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    for line in caught.value.lines():
        assert secret not in line
        assert line.isprintable()


def test_a_text_at_an_address_is_refused_without_its_password(folder):
    path = folder / "m.yaml"
    path.write_text(GOOD.replace("text.txt", "'http://user:hunter2@host/text'"))
    with pytest.raises(ManifestError, match="does not exist") as caught:
        load_manifest(path)
    assert "hunter2" not in str(caught.value)


def test_objects_of_other_kinds_are_left_to_kubectl(folder):
    path = folder / "m.yaml"
    path.write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: lab}\n---\n" + GOOD)
    assert load_manifest(path).metadata.name == "one"


@pytest.mark.skipif(shutil.which("localedef") is None, reason="no localedef")
def test_a_locale_of_another_encoding_finds_the_folder(folder):
    """The name of the folder is UTF-8, as nearly everywhere; the locale says Latin-1."""
    (folder / "Übung").mkdir()
    (folder / "Übung" / "a.txt").write_text("some text")
    path = folder / "m.yaml"
    path.write_text(GOOD.replace("text.txt", "Übung"), encoding="utf-8")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from forkcast_wire.manifest_file import load_manifest\n"
        "assert sys.getfilesystemencoding() != 'utf-8', sys.getfilesystemencoding()\n"
        "found = load_manifest(Path(sys.argv[1])).spec.data.train.uri\n"
        "assert os.listdir(found) == ['a.txt']\n"
    )
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no Latin-1 locale can be made on this machine")
    environment = {**os.environ, "LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_byte_order_mark_is_no_error(folder):
    path = folder / "m.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_manifest(path).metadata.name == "one"


def test_paths_become_absolute(folder):
    path = folder / "m.yaml"
    (folder / "tok").mkdir()
    given = _spec("storage: {path: store}\nmodel: {init: Pretrained, source: tok}")
    path.write_text(given.replace("text.txt}", "text.txt}\n    tokenizer: tok"))
    loaded = load_manifest(path)
    assert loaded.spec.data.tokenizer == loaded.spec.model.source == str(folder / "tok")
    assert loaded.spec.data.train.uri == str(folder / "text.txt")
    assert loaded.spec.storage.path == str(folder / "store")


@pytest.mark.parametrize("name", ["bytes", "gpt2", "openai-community/gpt2"])
def test_what_is_no_path_stays_as_it_is(folder, name):
    path = folder / "m.yaml"
    (folder / "bytes").mkdir()
    path.write_text(GOOD.replace("text.txt}", f"text.txt}}\n    tokenizer: {name}"))
    assert load_manifest(path).spec.data.tokenizer == name


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("suspend: true", "spec.suspend: the run is suspended"),
        ("parallelism: {nodes: 2}", "spec.parallelism.nodes: 2 nodes need a cluster"),
        ("branching: {executor: Pod}", "spec.branching.executor: Pod needs a cluster"),
        (
            "storage: {adoptFrom: gpt}",
            "spec.storage.adoptFrom: records are adopted on a cluster only",
        ),
    ],
)
def test_what_only_a_cluster_can_do_is_refused_by_run(folder, lines, said):
    path = folder / "m.yaml"
    path.write_text(_spec(lines))
    loaded = load_manifest(path)  # `plan` may look at it
    with pytest.raises(ManifestError, match=said):
        refuse_cluster_only(loaded.spec)


def test_what_describes_pods_is_accepted_and_ignored(folder):
    path = folder / "m.yaml"
    path.write_text(
        _spec(
            "resources: {perNode: {limits: {nvidia.com/gpu: 8}}}\n"
            "scheduling: {queueName: gpu}\n"
            "podPatch: {tolerations: [{key: gpu, operator: Exists}]}\n"
            "image: {trainer: forkcast/trainer}\n"
            "lifecycle: {maxRestarts: 3}\n"
            "storage: {secretRef: {name: s3}}"
        )
    )
    spec = load_manifest(path).spec
    refuse_cluster_only(spec)
    assert spec.resources.per_node.limits == {"nvidia.com/gpu": "8"}


def test_a_variable_from_a_secret_is_missed_where_the_shell_has_none(folder):
    path = folder / "m.yaml"
    path.write_text(
        _spec(
            "podPatch: {env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: t}}}, {name: A}]}"
        )
    )
    spec = load_manifest(path).spec
    (line,) = absent_secrets(spec, {})
    assert "HF_TOKEN comes from a Secret" in line
    assert absent_secrets(spec, {"HF_TOKEN": "x"}) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_manifest(folder):
    path = folder / "m.yaml"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(ManifestError, match="make it readable"):
        load_manifest(path)


@pytest.mark.parametrize("name", ["gone.yaml", "hollow", "m.yaml"])
def test_the_command_says_it_in_one_line_and_imports_little(folder, name):
    (folder / "m.yaml").write_text(_spec("branching: {topK: 8, candidates: 4}"))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "forkcast_cli", "run", str(folder / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [one for one in done.stderr.splitlines() if not one.startswith("import time:")]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert "| torch\n" not in done.stderr
    assert "Traceback" not in done.stderr
    modules = done.stderr.count("import time:")  # what its time goes into
    assert modules < 1000, modules
    assert not (folder / "runs").exists()

"""Every wrong manifest ends in one line that names field, rule and remedy, and exit code 2."""

import os
import resource
import subprocess
import sys

import pytest

from forkcast_wire.manifest_file import ManifestError, load_manifest, refuse_cluster_only

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
    "signal_missing": (
        _spec('uncertainty: {weights: {volatility: "1"}}'),
        ["spec.uncertainty.weights", "entropy, disagreement missing"],
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
    "duplicate_key": (_spec("model: {}\nmodel: {}"), ["line 10", "duplicate key model"]),
    "tab": (GOOD.replace("  training", "\ttraining"), ["line 8", "tab"]),
    "broken_yaml": (GOOD + "  model: {\n", ["not YAML", "line"]),
    "alias_bomb": ("a: &a [x, x]\nb: [*a, *a]\n", ["aliases"]),
    "deep": ("[" * 5000, ["not YAML"]),
    "empty": ("", ["empty"]),
    "only_a_comment": ("# nothing\n", ["empty"]),
    "two_documents": (GOOD + "---\n" + GOOD, ["2 documents"]),
    "a_list": ("- a\n- b\n", ["not a mapping"]),
    "spec_is_a_list": (GOOD[: GOOD.index("spec:")] + "spec: []\n", ["spec", "got []"]),
    "python_tag": ("a: !!python/object:os.system {}\n", ["not YAML"]),
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
        ("large.yaml", b"#" * (1 << 20) + b"\n", "1 MiB"),
        ("null.yaml", GOOD.encode() + b"\x00", "not YAML"),
    ],
)
def test_wrong_bytes(folder, name, data, said):
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=said):
        load_manifest(path)


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_manifest(folder):
    path = folder / "m.yaml"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(ManifestError, match="make it readable"):
        load_manifest(path)


def _cpu_of_children():
    """CPU seconds: other work on the machine must not fail the test."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", ["gone.yaml", "hollow", "m.yaml"])
def test_the_command_says_it_in_one_line_and_in_time(folder, name):
    (folder / "m.yaml").write_text(_spec("branching: {topK: 8, candidates: 4}"))
    before = _cpu_of_children()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "forkcast_cli", "run", str(folder / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = [one for one in done.stderr.splitlines() if not one.startswith("import time:")]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert "| torch\n" not in done.stderr
    assert "Traceback" not in done.stderr
    assert _cpu_of_children() - before < 6  # alone it takes well under 1.5 s of wall time
    assert not (folder / "runs").exists()

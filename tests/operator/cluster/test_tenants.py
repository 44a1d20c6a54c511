"""A hostile namespace beside another one, on a real API server and a real S3 server: whatever its run
asks for, the operator's own credentials touch nothing of the other's.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from forkcast import lineage
from forkcast.records import StateKind
from forkcast_operator.kubernetes.cluster import JOB, RUN, ClusterError
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.ledger import Ledger
from forkcast_operator.kubernetes.memory import Memory
from forkcast_operator.kubernetes.run import Run, SpecError, store_place
from forkcast_wire import catalogue, keys
from forkcast_wire.branches import BranchRecord
from forkcast_wire.documents import RunInfo, dump, lineage_head
from forkcast_wire.resources import TrainingRunStatus
from forkcast_wire.store import StoreUnavailable, open_store, put_document, read_document
from forkcast_wire.store.s3 import S3Store

from .test_on_an_api_server import play, to_the_end_of_the_branch

pytestmark = pytest.mark.slow
BUCKET = "runs"


def _open(storage):
    return open_store(storage, Path("/nowhere"))


@pytest.fixture
def shared(gateway):
    """The configuration of an operator with one store for all namespaces."""
    gateway.make_bucket(BUCKET)
    return OperatorConfig.model_validate(
        {
            "monitor": {"target": "monitor.system.svc:50051", "insecureDev": True},
            "trainer": {"image": "forkcast/trainer:1"},
            "stores": [
                {
                    "endpoint": gateway.endpoint,
                    "bucket": BUCKET,
                    "credentialsDir": str(gateway.credentials),
                }
            ],
        }
    )


@pytest.fixture
def whole(shared):
    """Everything in the bucket, by key."""
    store = S3Store.connect(shared.stores[0].storage(""))
    return lambda: {info.key: info.etag for info in store.list("")}


@pytest.fixture
def tenants(stages, shared):
    """Two namespaces of one operator."""
    lab, evil = stages(f"lab{secrets.token_hex(3)}"), stages(f"evil{secrets.token_hex(3)}")
    connect = lab.start_operator

    def start() -> None:
        connect(config=shared, open_store=_open)
        evil.cluster, evil.view, evil.runs, evil.link = lab.cluster, lab.view, lab.runs, lab.link

    lab.start_operator = start
    return lab, evil


async def _train(stage, shared, **spec):
    """A run with states to branch from; `stage.store` is its place."""
    await stage.create(**spec)
    await stage.look()
    run = Run.of(await stage.run())
    stage.store = _open(store_place(run, run.parsed(), shared).operator)
    for step in (25, 50, 75, 98, 100):
        stage.save_state(StateKind.RING, step)
    stage.save_state(StateKind.CHECKPOINT, 100)


async def _delete(stage) -> None:
    await stage.cluster.delete(RUN, stage.namespace, "gpt")
    await stage.until_gone()


PREFIXES = {
    "above": "{lab}/",
    "the same": "{lab}/gpt-{uid}/",
    "below": "{lab}/gpt-{uid}/branches/",
    "the whole bucket": "",
    "another name": "{lab}/gpt-{uid}/checkpoints/e0/a0/",
}


@pytest.mark.parametrize("named", [True, False], ids=["bucket named", "no bucket"])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_no_verb_of_the_operator_reaches_another_namespace(
    tenants, shared, whole, prefix, named
) -> None:
    lab, evil = tenants

    async def scene():
        await _train(lab, shared)
        catalogue.pin(lab.store, "e0-t90", [keys.state(StateKind.RING, 0, 0, 75)])
        before = whole()
        assert len(before) > 12
        storage = {"prefix": prefix.format(lab=lab.namespace, uid=lab.uid[:8])}
        if named:
            storage |= {"endpoint": shared.stores[0].endpoint, "bucket": BUCKET}
        await _train(evil, shared, storage=storage, lifecycle={"onDelete": "Delete"})
        evil.link.hear(evil.trigger())
        await evil.look()
        evil.link.hear(evil.trigger(130))
        await to_the_end_of_the_branch(evil)
        mine = {info.key for info in evil.store.list("")}
        # put, list, lineage, pin and release were all done, and in its own place
        assert {keys.RUN, keys.CATALOGUE, lineage.key(1), "suppressed/e0-t130.json"} <= mine
        assert {f"branches/e0-t100/{one}.json" for one in ("bases", "draft", "outcome")} <= mine
        assert lineage_head(evil.store).epoch == 1
        assert {key: etag for key, etag in whole().items() if key in before} == before
        added = set(whole()) - set(before)
        assert all(key.startswith(f"{evil.namespace}/gpt-{evil.uid[:8]}/") for key in added)
        await _delete(evil)
        assert whole() == before

    play(lab, scene)


def test_deleted_in_a_branch_only_its_own_pins_go(tenants, shared, whole) -> None:
    lab, evil = tenants

    async def scene():
        await _train(lab, shared)
        lab.link.hear(lab.trigger())
        await lab.look()
        pinned = catalogue.read(lab.store).pins
        assert pinned
        before = whole()
        storage = {"prefix": f"{lab.namespace}/gpt-{lab.uid[:8]}/"}
        await _train(evil, shared, storage=storage)
        evil.link.hear(evil.trigger())
        await evil.look()
        assert catalogue.read(evil.store).pins
        await _delete(evil)
        assert catalogue.read(evil.store).pins == {}
        assert catalogue.read(lab.store).pins == pinned
        assert {key: etag for key, etag in whole().items() if key in before} == before

    play(lab, scene)


def test_a_branch_record_that_names_another_tenants_run_asks_the_monitor_nothing_about_it(
    tenants, shared
) -> None:
    """Regression: whoever could write into a run's own prefix had the operator read another tenant's
    window and post directives to its trainer.
    """
    lab, evil = tenants

    async def scene():
        await _train(lab, shared)
        await _train(evil, shared)
        evil.link.hear(evil.trigger())
        await evil.look()
        key = keys.branch_file("e0-t100", "branch")
        opened = read_document(evil.store, BranchRecord, key)
        for step in (100, 130):
            forged = replace(opened, trigger=lab.trigger(step))
            evil.store.put(keys.branch_file(f"e0-t{step}", "branch"), dump(forged))
        lab.start_operator()  # another one remembers nothing
        lab.monitor.asked.clear()
        for _ in range(3):
            await evil.look()
        assert [one for one in lab.monitor.asked if one[1] == lab.uid] == []

    play(lab, scene)


def test_records_under_another_tenants_identity_reach_nothing_of_it_at_the_monitor(
    tenants, shared
) -> None:
    """Regression: with the other's uid in run.json, a run took its triggers, showed its figures, and
    when it was deleted the monitor forgot the other.
    """
    lab, evil = tenants

    async def scene():
        await _train(lab, shared)
        await _train(evil, shared)
        standing = read_document(evil.store, RunInfo, keys.RUN)
        forged = replace(standing, uid=lab.uid, holder_uid=evil.uid, held_by="gpt")
        evil.store.put(keys.RUN, dump(forged))
        lab.start_operator()
        lab.link.hear(lab.trigger())
        lab.monitor.asked.clear()
        for _ in range(3):
            await evil.look()
        assert evil.store.head(keys.branch_file("e0-t100", "branch")) is None
        assert [one.step for one in lab.link.triggers(lab.uid)] == [100]
        conditions = (await evil.run())["status"]["conditions"]
        assert any("registered in another namespace" in one["message"] for one in conditions)
        await _delete(evil)
        assert lab.monitor.asked == []
        await lab.look()
        assert lab.store.head(keys.branch_file("e0-t100", "branch")) is not None

    play(lab, scene)


def test_a_prefix_with_a_hidden_part_is_refused_by_name(tenants) -> None:
    """The API server takes it; the operator does not."""
    _, evil = tenants

    async def scene():
        await evil.create(storage={"prefix": ".hidden/"})
        await evil.look()
        assert await evil.condition("Stalled") == ("True", "InvalidSpec")
        assert await evil.names(JOB) == []

    play(evil, scene)


@pytest.mark.parametrize("prefix", ["../{lab}/", "a/../../{lab}/"])
def test_a_prefix_that_climbs_is_refused_by_name(tenants, shared, whole, prefix) -> None:
    lab, evil = tenants

    async def scene():
        await _train(lab, shared)
        before = whole()
        storage = {"prefix": prefix.format(lab=lab.namespace)}
        with pytest.raises(ClusterError, match=r"422: .*spec\.storage\.prefix"):
            await evil.create(storage=storage, lifecycle={"onDelete": "Delete"})
        assert await evil.names(JOB) == []
        assert whole() == before

    play(lab, scene)


@pytest.mark.parametrize("account", ["forkcast-operator", None], ids=["named", "by default"])
def test_no_run_has_an_account_of_the_installation(stage, account) -> None:
    reserved = f"{stage.namespace}/{account or 'default'}"

    async def scene():
        config = {
            "trainer": {"image": "forkcast/trainer:1"},
            "stores": [{"endpoint": "https://s3.example", "bucket": "runs"}],
            "reservedAccounts": [reserved],
        }
        stage.start_operator(config=OperatorConfig.model_validate(config))
        patch = {"serviceAccountName": account} if account else {}
        await stage.create(podPatch=patch)
        await stage.look()
        assert await stage.condition("Stalled") == ("True", "AccountReserved")
        assert await stage.names(JOB) == []
        await stage.create("other", podPatch={"serviceAccountName": "trainers"})
        await stage.look("other")
        assert await stage.names(JOB) == ["other-trainer-0"]

    play(stage, scene)


# --------------------------------------------------------------------- erasing, at the server alone


@pytest.fixture
def place(shared, make_run):
    """A run, its place, and the records there."""
    run = make_run()
    found = store_place(run, run.parsed(), shared)
    return run, found, Ledger(run, _open(found.operator))


def test_erased_are_the_runs_own_records_and_nothing_else(place, whole) -> None:
    _, found, ledger = place
    ledger.claim("0", 1000, TrainingRunStatus())
    prefix = found.operator.prefix
    mine = [
        keys.state_manifest(keys.state(StateKind.CHECKPOINT, 0, 0, 5)),
        lineage.key(1),
        "branches/e0-t1/phase.json",
        "rollouts/e0-t1/c001/trial-000010.json",
    ]
    for key in [*mine, "notes.txt", "branches/e0-t1/photo.png"]:
        ledger.store.put(key, b"{}")
    assert ledger.erase() == len(mine) + 1
    assert set(whole()) == {f"{prefix}notes.txt", f"{prefix}branches/e0-t1/photo.png"}


@pytest.mark.parametrize("where", ["", "other-1234/", "a/b/"])
def test_nothing_is_erased_where_another_run_has_records(place, shared, whole, where) -> None:
    run, _, ledger = place
    ledger.claim("0", 1000, TrainingRunStatus())
    other = RunInfo(uid="another", name="other", manifest_digest="0")
    ledger.store.delete(f"{where}{keys.RUN}")
    put_document(ledger.store, f"{where}{keys.RUN}", other)
    ledger.store.put(f"{where}{lineage.key(1)}", b"{}")
    before = whole()
    fresh = Ledger(run, ledger.store)
    with pytest.raises(SpecError, match="run"):
        fresh.erase()
    with pytest.raises(SpecError, match=r"another|holds run other"):
        fresh.claim("0", 1000, TrainingRunStatus())
    assert whole() == before


def test_nothing_is_erased_without_a_run_json(place, whole) -> None:
    _, _, ledger = place
    ledger.store.put(lineage.key(1), b"{}")
    before = whole()
    assert ledger.erase() == 0
    assert whole() == before


def test_a_pass_that_an_outage_used_up_is_not_the_last(place, monkeypatch) -> None:
    """However much time the passes of an outage have taken, the next one asks the store again."""
    _, _, ledger = place
    ledger.claim("0", 1000, TrainingRunStatus())
    now, well = 0.0, type(ledger.store.direct).head

    def silent(*_):
        nonlocal now
        now += 100.0
        raise StoreUnavailable("no answer")

    ledger.store.refresh()
    monkeypatch.setattr(ledger.store, "_clock", lambda: now)
    monkeypatch.setattr(type(ledger.store.direct), "head", silent)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            ledger.claim("0", 1000, TrainingRunStatus())
    assert now == 300.0
    monkeypatch.setattr(type(ledger.store.direct), "head", well)
    assert ledger.claim("0", 1000, TrainingRunStatus()).manifest_digest == "0"


# ------------------------------------------------------------------- runs of an older operator


def _claim(memory, run, config):
    memory.claim(run, run.parsed(), store_place(run, run.parsed(), config), _open)
    return memory.place


FORMER = {
    "with its own bucket": ({"bucket": BUCKET, "prefix": "mine/"}, "", "mine/"),
    "with a prefix alone": ({"prefix": "mine/"}, "", "mine/ml/gpt-075a10ff/"),
    "from before the release had a prefix": ({}, "release/", "ml/gpt-075a10ff/"),
}


@pytest.mark.parametrize(("storage", "release", "former"), FORMER.values(), ids=FORMER)
def test_a_run_goes_on_where_it_has_records_already(
    shared, make_run, whole, storage, release, former
) -> None:
    if "bucket" in storage:
        storage = {**storage, "endpoint": shared.stores[0].endpoint}
    run = make_run(storage=storage)
    stores = [shared.stores[0].model_copy(update={"prefix": release})]
    config = shared.model_copy(update={"stores": stores})
    old = _open(shared.stores[0].storage(former))
    identity = RunInfo(uid=run.uid, name="gpt", manifest_digest="0", first_total_steps=1000)
    put_document(old, keys.RUN, identity)
    before = whole()
    memory = Memory()
    place = _claim(memory, run, config)
    assert place.operator.prefix == place.pods.prefix == former
    assert memory.info.uid == run.uid
    assert _claim(memory, run, config) == place
    assert whole() == before
    # one that has none there yet begins at the new place
    new = make_run(storage=storage)
    old.delete(keys.RUN)
    place = _claim(Memory(), new, config)
    assert place.operator.prefix == f"{release}ml/gpt-075a10ff/{storage.get('prefix', '')}"


def test_a_former_prefix_above_other_runs_is_refused(shared, make_run, whole) -> None:
    storage = {"endpoint": shared.stores[0].endpoint, "bucket": BUCKET, "prefix": "lab-b/"}
    run = make_run(storage=storage)
    everything = _open(shared.stores[0].storage(""))
    own = RunInfo(uid=run.uid, name="gpt", manifest_digest="0", first_total_steps=1000)
    put_document(everything, "lab-b/run.json", own)
    put_document(everything, "lab-b/x-1/run.json", RunInfo(uid="v", name="x", manifest_digest="0"))
    before = whole()
    memory = Memory()
    with pytest.raises(SpecError, match="another run below it"):
        _claim(memory, run, shared)
    place = store_place(run, run.parsed(), shared)
    ledger, _ = memory.records(run, place, _open)
    with pytest.raises(SpecError, match="another run below it"):
        ledger.erase()
    assert whole() == before


def test_the_prefix_is_below_the_releases_and_the_namespaces(shared, make_run) -> None:
    store = shared.stores[0].model_copy(update={"prefix": "release/"})
    config = shared.model_copy(update={"stores": [store]})
    run = make_run(storage={"prefix": "mine/"})
    place = store_place(run, run.parsed(), config)
    assert place.pods.prefix == place.operator.prefix == "release/ml/gpt-075a10ff/mine/"

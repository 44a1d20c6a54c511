"""Every optimizer keeps the contract of the shelf, alone and in the trainer; each one's own facts."""

import sys

import pytest
import torch
from torch import nn

from forkcast.actions import KEEP, Action
from forkcast_operator.rules import lattice_of
from forkcast_trainer import optimizers
from forkcast_trainer.apply import apply
from forkcast_trainer.checkpoint import CheckpointError, read_container, write_container
from forkcast_trainer.clipping import CLIPPING
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import family_of
from forkcast_trainer.optimizers import OPTIMIZERS
from forkcast_trainer.placement import placement
from forkcast_trainer.state import restore, snapshot
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import Optimizer, TrainingRun
from forkcast_wire.shelves import SHELVES
from tests.make import trigger

RATE, DECAY = 1e-2, 0.1
FAMILY = family_of("gpt2-tiny")


def make(net, settings):
    return optimizers.make(net, FAMILY, settings)


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    if request.param == "AdamW8bit":
        pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    return request.param


class Net(nn.Module):
    """A table, a block of two matrices, a norm, a head; it learns to say the token it is shown."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.wte = nn.Embedding(16, 64)
        self.up, self.norm, self.down = nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64)
        self.lm_head = nn.Linear(64, 16, bias=False)

    def loss(self, seed=0):
        ids = torch.randint(0, 16, (64,), generator=torch.Generator().manual_seed(seed))
        return nn.functional.cross_entropy(
            self.lm_head(self.down(self.norm(self.up(self.wte(ids))))), ids
        )


def stepped(net, optimizer, count=1, rate=RATE, decay=DECAY, first=0):
    for seed in range(first, first + count):
        optimizers.set_rates(optimizer, rate, decay)
        optimizer.zero_grad()
        net.loss(seed).backward()
        optimizer.step()


def weights(module):
    return {key: one.detach().clone() for key, one in module.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -------------------------------------------------------------------------------------------- alone


def test_it_learns(name):
    net = Net()
    optimizer = make(net, Optimizer(name=name))
    before = float(net.loss().detach())
    stepped(net, optimizer, 40, decay=0.0)
    assert float(net.loss().detach()) < 0.3 * before


def test_a_rate_of_zero_moves_nothing(name):
    net = Net()
    optimizer = make(net, Optimizer(name=name))
    stepped(net, optimizer, 3)
    before = weights(net)
    stepped(net, optimizer, 2, rate=0.0)
    assert same(weights(net), before)


def test_without_a_gradient_only_matrices_and_tables_decay(name):
    net = Net()
    optimizer = make(net, Optimizer(name=name))
    before = weights(net)
    optimizers.set_rates(optimizer, RATE, DECAY)
    for one in net.parameters():
        one.grad = torch.zeros_like(one)
    optimizer.step()
    for key, now in weights(net).items():
        shrunk = 1 - RATE * DECAY if now.ndim >= 2 else 1.0
        torch.testing.assert_close(now, before[key] * shrunk, rtol=1e-6, atol=0)


def test_the_groups_hold_every_parameter_once(name):
    net = Net()
    optimizer = make(net, Optimizer(name=name))
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(held) == sorted(id(one) for one in net.parameters())
    assert set(optimizers.layouts(optimizer)) == set(net.parameters())


def test_its_moments_are_those_of_the_gradient(name):
    net = Net()
    optimizer = make(net, Optimizer(name=name))
    parameters = list(net.parameters())
    assert list(optimizers.moments(optimizer, parameters)) == [None] * len(parameters)
    stepped(net, optimizer)
    for one, kept in zip(parameters, optimizers.moments(optimizer, parameters), strict=True):
        assert (kept.first.shape, kept.first.dtype) == (one.shape, torch.float32)
        along = nn.functional.cosine_similarity(kept.first.flatten(), one.grad.flatten(), dim=0)
        assert float(along) > 0.999
        if OPTIMIZERS[name].second_moment:
            squares = one.grad.square().flatten()
            along = nn.functional.cosine_similarity(kept.second.flatten(), squares, dim=0)
            assert float(along) > 0.999
            assert float(kept.count) == 1


def test_after_a_reset_it_steps_as_if_it_had_never_stepped(name):
    net = Net()
    optimizer = make(net, Optimizer(name=name))
    stepped(net, optimizer, 5)
    optimizers.reset(optimizer)
    fresh = Net()
    fresh.load_state_dict(net.state_dict())
    for kept in optimizers.moments(optimizer, net.parameters()):
        assert not kept.first.any()
        assert kept.second is None or not kept.second.any()
        assert kept.count is None or float(kept.count) == 0
    stepped(net, optimizer, 3, first=9)
    stepped(fresh, make(fresh, Optimizer(name=name)), 3, first=9)
    assert same(weights(net), weights(fresh))


def test_it_keeps_as_many_bits_of_a_weight_as_the_shelf_says(name):
    net = Net()
    optimizer = make(net, Optimizer(name=name))
    stepped(net, optimizer)
    bits = SHELVES["optimizers"][name]
    layouts = optimizers.layouts(optimizer)
    for one in optimizers.described(net, FAMILY):
        kept = layouts[one.tensor].saved(optimizer.state[one.tensor]).values()
        found = sum(8 * t.nbytes for t in kept if t.ndim) / one.tensor.numel()
        said = bits["matrixBits"] if one.matrix else bits["otherBits"]
        assert said - 1 < found <= said


# ----------------------------------------------------------------------------------- in the trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all engines find the same tokens."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def engine(tiny, folder):
    def make(name, policy="Norm", dtype="Float32"):
        document = tiny(steps=40, dropout="0.1", gradientAccumulationSteps=4).document()
        document["spec"]["model"]["dtype"] = dtype
        document["spec"]["optimizer"] |= {"name": name, "clipping": {"policy": policy}}
        spec = TrainingRun.model_validate(document).spec
        return Engine(spec, "u", folder, placement(spec))

    return make


def run(one, count):
    for _ in range(count):
        one.step()
    return one


def equal(one, other):
    return same(one.tensors, other.tensors) and one.meta == other.meta


def test_a_run_that_was_cut_is_the_unbroken_one_to_the_bit(engine, name, tmp_path):
    unbroken = run(engine(name), 6)
    digest = write_container(snapshot(unbroken), tmp_path / "x.ptz", 1)
    after = [snapshot(unbroken), snapshot(run(unbroken, 6))]
    resumed = run(engine(name), 1)  # whatever it did before must not matter
    restore(resumed, read_container(tmp_path / "x.ptz", digest))
    assert equal(snapshot(resumed), after[0])
    assert equal(snapshot(run(resumed, 6)), after[1])


ACTIONS = {
    "rate": Action(learning_rate_scale=0.8),
    "decay": Action(weight_decay_scale=2.0),
    "reset": Action(momentum_reset=True),
    "reset at another rate": Action(learning_rate_scale=1.1, momentum_reset=True),
    **{policy: Action(clipping=policy) for policy in CLIPPING},
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_fork_is_what_the_run_itself_would_have_done(engine, name, action):
    if ACTIONS[action].clipping not in {KEEP, *allowed(name)}:
        pytest.skip("not in the lattice of this optimizer")
    base = run(engine(name), 3)
    saved = snapshot(base)
    apply(base, ACTIONS[action])
    after = snapshot(run(base, 4))
    forked = engine(name)
    restore(forked, saved)
    apply(forked, ACTIONS[action])
    assert equal(snapshot(run(forked, 4)), after)
    restore(forked, saved)
    plain = snapshot(run(forked, 4))
    if action not in CLIPPING:
        assert not same(plain.tensors, after.tensors)


def test_an_overflow_of_fp16_leaves_weights_and_moments_as_they_are(engine, name):
    one = run(engine(name, dtype="Float16"), 2)
    before = snapshot(one).tensors
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 2.0**126})
    after = snapshot(run(one, 1)).tensors
    mine = [key for key in before if key.startswith(("model.", "optimizer."))]
    assert all(torch.equal(before[key], after[key]) for key in mine)
    assert one.scaler.get_scale() == 2.0**125
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 2.0**10})
    moved = snapshot(run(one, 1)).tensors
    assert not all(torch.equal(after[key], moved[key]) for key in mine)


def allowed(name):
    """The clipping policies that a manifest with this optimizer may name."""
    keeps = OPTIMIZERS[name].second_moment
    return [policy for policy, one in CLIPPING.items() if keeps or not one.needs_second_moment]


@pytest.mark.parametrize("policy", CLIPPING)
def test_it_trains_under_every_policy_or_the_manifest_says_why_not(engine, name, policy):
    if policy in allowed(name):
        one = run(engine(name, policy), 3)
        assert all(bool(p.isfinite().all()) for p in one.parameters)
    else:
        why = r"clipping\.policy: SPAM needs a second moment of every weight, which only .*ZClip"
        with pytest.raises(ValueError, match=why):
            engine(name, policy)


def test_a_branch_draws_no_policy_that_the_optimizer_cannot_follow(tiny, name):
    document = tiny(gradientAccumulationSteps=4).document()
    document["spec"]["optimizer"] = {"name": name}
    spec = TrainingRun.model_validate(document).spec
    drawn = lattice_of(spec, trigger(), (), ()).clipping
    assert set(drawn) == {KEEP, "ZClip", "ARC", "None"} | ({"SPAM"} & set(allowed(name)))


def test_a_state_of_another_optimizer_is_refused_by_name(engine, name):
    theirs = "AdamW" if name != "AdamW" else "Muon"
    saved = snapshot(run(engine(theirs), 1))
    own = engine(name)
    before = snapshot(own)
    said = f"another optimizer: {theirs}, not {name}; set spec.optimizer.name to {theirs}"
    with pytest.raises(CheckpointError, match=said):
        restore(own, saved)
    assert equal(snapshot(own), before)


def test_a_state_that_lacks_a_slot_is_refused(engine, name):
    saved = snapshot(run(engine(name), 1))
    other = engine(name)
    for key in [key for key in saved.tensors if key.startswith("optimizer.")][:8]:
        tensor = saved.tensors.pop(key)
        layout = key.rpartition(".")[0]
        alone = not any(one.startswith(f"{layout}.") for one in saved.tensors)
        if not alone:
            with pytest.raises(CheckpointError, match="are missing"):
                restore(other, saved)
        saved.tensors[key] = tensor
    restore(other, saved)


# ------------------------------------------------------------------------------------ each one's own


def test_adamw_is_torchs_with_the_groups_it_always_had():
    ours, theirs = Net(), Net()
    decayed = [one for one in theirs.parameters() if one.ndim >= 2]
    plain = [one for one in theirs.parameters() if one.ndim < 2]
    groups = [{"params": decayed, "decays": True}, {"params": plain, "decays": False}]
    reference = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    stepped(ours, make(ours, Optimizer()), 20)
    stepped(theirs, reference, 20)
    assert same(weights(ours), weights(theirs))


def test_a_state_of_adamw_is_what_older_versions_read(engine):
    saved = snapshot(run(engine("AdamW"), 1))
    assert "optimizer" not in saved.meta
    slots = {key.rpartition(".")[2] for key in saved.tensors if key.startswith("optimizer.")}
    assert slots == {"exp_avg", "exp_avg_sq", "step"}


def test_muon_has_the_matrices_of_blocks_and_no_table_or_head(engine):
    one = engine("Muon")
    names = {id(parameter): key for key, parameter in one.named.items()}
    muons = {
        names[id(parameter)]
        for parameter, layout in optimizers.layouts(one.optimizer).items()
        if layout.first == "momentum_buffer"
    }
    blocks = {key for key, parameter in one.named.items() if ".h." in key and parameter.ndim == 2}
    assert muons == blocks
    assert len(blocks) == 8  # two layers


def test_muon_alone_has_its_own_momentum():
    def after(**settings):
        net = Net()
        stepped(net, make(net, Optimizer(name="Muon", **settings)), 3)
        return weights(net)["up.weight"]

    assert torch.equal(after(), after(momentum=0.95))
    assert not torch.equal(after(), after(momentum=0.5))
    with pytest.raises(ValueError, match="momentum: is of Muon; leave it out"):
        Optimizer(name="AdamW", momentum=0.5)


def test_muons_update_has_the_size_of_adamws():
    """So that one learning rate serves both: .2 sqrt(max(rows, columns)) times an orthogonal matrix."""
    net = Net()
    optimizer = make(net, Optimizer(name="Muon"))
    before = weights(net)
    optimizers.set_rates(optimizer, RATE, 0.0)
    for one in net.parameters():
        one.grad = torch.randn_like(one)
    optimizer.step()
    for key in ("up.weight", "down.weight"):
        moved = (net.state_dict()[key] - before[key]).square().mean().sqrt()
        assert 0.1 * RATE < float(moved) < 0.3 * RATE


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        TrainerError, match=r"pip install 'forkcast\[bitsandbytes\]', or take AdamW"
    ):
        make(Net(), Optimizer(name="AdamW8bit"))


def test_eight_bits_are_decoded_as_the_library_does_it():
    functional = pytest.importorskip("bitsandbytes.functional", reason="the extra is not installed")
    net = Net()
    optimizer = make(net, Optimizer(name="AdamW8bit"))
    stepped(net, optimizer, 3)
    kept, state = (
        next(optimizers.moments(optimizer, [net.up.weight])),
        optimizer.state[net.up.weight],
    )
    for n, ours in ((1, kept.first), (2, kept.second)):
        theirs = functional.dequantize_blockwise(
            state[f"state{n}"],
            absmax=state[f"absmax{n}"],
            code=state[f"qmap{n}"],
            blocksize=256,
        )
        assert torch.equal(ours, theirs)
    assert float(kept.count) == 3

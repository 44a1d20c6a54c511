"""Moments in 8 bits: how far off they are, what never happens to them, and that it happens once."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast_trainer.checkpoint import Snapshot, read_container, write_container
from forkcast_trainer.frame_codecs import CODECS
from forkcast_trainer.moments import bounded, largest_ratio
from forkcast_trainer.table import Role
from tests.trainer import containers

INFINITE = 0x7F800000
META = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": 7, "loss": 1.5}
COUNTS = st.sampled_from([1, 2, 3, 255, 256, 257, 600])


def coded(codec, values, level=1):
    """(the frame, what becomes of the values); None if the codec is not for them."""
    chunk = np.ascontiguousarray(values, np.float32).view(np.uint8)
    frame = CODECS[codec].encode(chunk, 4, level)
    if frame is None:
        return None
    out = np.empty_like(chunk)
    CODECS[codec].decode(memoryview(bytes(frame)), out, 4)
    return bytes(frame), out.view(np.float32)


@st.composite
def magnitudes(draw):
    """Finite and not negative, as arrays: of any size at all, or around one, zeros among them."""
    count = draw(COUNTS)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    low = draw(st.integers(0, INFINITE - 1))
    high = draw(st.integers(low, INFINITE - 1))
    bits = rng.integers(low, high, count, endpoint=True, dtype=np.uint32)
    bits[rng.random(count) < draw(st.sampled_from([0, 0.2, 1]))] = 0
    return bits.view(np.float32)


def by_hand_second(block):
    """The page's words in whole numbers: (a, s, codes) of a block of bits."""
    q = [0 if b == 0 else max(1, min((b + (1 << 18)) >> 19, 4079)) for b in block]
    there = [one for one in q if one]
    if not there:
        return 0, 0, [0] * len(q)
    a = min(there)
    s = 0
    while (max(there) - a + ((1 << s) >> 1)) >> s > 253:
        s += 1
    return a, s, [1 + ((one - a + ((1 << s) >> 1)) >> s) if one else 0 for one in q]


def by_hand_first(block):
    q = [min(((b & 0x7FFFFFFF) + (1 << 19)) >> 20, 2039) for b in block]
    a = max(0, max(q) - 127)
    codes = [max(0, one - a) for one in q]
    return a, [c | (b >> 31) << 7 if c else 0 for c, b in zip(codes, block, strict=True)]


@settings(deadline=None, max_examples=200)
@given(values=magnitudes(), signs=st.integers(0, 1 << 32))
def test_the_encodings_are_those_of_the_page_worked_out_by_hand(values, signs):
    bits = [int(one) for one in values.view(np.uint32)]
    blocks = [bits[at : at + 256] for at in range(0, len(bits), 256)]
    hand = [by_hand_second(block) for block in blocks]
    anchors = struct.pack(f"<{len(hand)}H", *(a | s << 12 for a, s, _ in hand))
    assert coded("second8", values, 0)[0] == anchors + bytes(c for _, _, row in hand for c in row)
    flips = np.random.default_rng(signs).integers(0, 2, len(bits), dtype=np.uint32) << 31
    signed = (values.view(np.uint32) | flips).view(np.float32)
    bits = [int(one) for one in signed.view(np.uint32)]
    hand = [by_hand_first(bits[at : at + 256]) for at in range(0, len(bits), 256)]
    anchors = struct.pack(f"<{len(hand)}H", *(a for a, _ in hand))
    assert coded("first8", signed, 0)[0] == anchors + bytes(c for _, row in hand for c in row)


@settings(deadline=None, max_examples=200)
@given(values=magnitudes(), level=st.sampled_from([0, 1]))
def test_a_second_moment_is_near_and_zero_only_if_it_was(values, level):
    frame, found = coded("second8", values, level)
    assert np.array_equal(found == 0, values == 0)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    for at in range(0, len(values), 256):
        was, now = (a[at : at + 256].view(np.uint32).astype(np.int64) for a in (values, found))
        _, s, _ = by_hand_second(was.tolist())
        # of these bits 2**23 are a power of two; s > 0: rounded to the grid, then to its steps
        most = 2**19 * (0.5 if s == 0 else 0.5 + 2 ** (s - 1))
        normal = (was >= 1 << 23) & (was < 4079 << 19)
        assert (np.abs(was - now)[normal] <= most).all()
    assert coded("second8", found, level) == (frame, pytest.approx(found, abs=0))


@settings(deadline=None, max_examples=200)
@given(values=magnitudes(), signs=st.integers(0, 1 << 32), level=st.sampled_from([0, 1]))
def test_a_first_moment_is_near_keeps_its_sign_and_hardly_grows(values, signs, level):
    values = values * (1 - 2 * np.random.default_rng(signs).integers(0, 2, len(values)))
    values = values.astype(np.float32)
    frame, found = coded("first8", values, level)
    assert (found * np.sign(values) >= 0).all()
    assert (np.abs(found.astype(float)) <= np.abs(values.astype(float)) * 17 / 16 + 2.0**-130).all()
    for at in range(0, len(values), 256):
        was, now = (a[at : at + 256].astype(float) for a in (values, found))
        most = np.maximum(np.abs(was) / 16, max(np.abs(was).max() * 2.0**-15, 2.0**-129))
        assert (np.abs(was - now) <= most).all()
    assert coded("first8", found, level) == (frame, pytest.approx(found, abs=0))


@pytest.mark.parametrize("codec", ["first8", "second8"])
def test_a_block_of_equal_numbers_and_a_block_of_one_are_near(codec):
    for count in (1, 256, 300):
        for value in (1e-12, 3.3e-7, 1.0, 3e38):
            _, found = coded(codec, np.full(count, value, np.float32))
            assert np.allclose(found, value, rtol=1 / 16)
        _, found = coded(codec, np.zeros(count, np.float32))
        assert not found.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, -0.0], ids=str)
def test_what_is_no_moment_is_stored_to_the_bit(tmp_path, value):
    """The chunk with it; the others are in 8 bits."""
    draw = torch.Generator().manual_seed(1)
    second = torch.randn(1024, generator=draw).square() * 1e-8
    second[600] = value
    roles = {"a": Role.SECOND_MOMENT}
    write_container(
        Snapshot(META, {"a": second}, roles), tmp_path / "x", 1, chunk_bytes=1024, int8=True
    )
    found = read_container(tmp_path / "x")
    frames = containers.parts(tmp_path / "x")[0]["tensors"][0]["frames"]
    assert [frame[2] == "second8" for frame in frames] == [True, True, False, True]
    assert found.coded == {"a"}
    same = found.tensors["a"].view(torch.int32) == second.view(torch.int32)
    assert same[512:768].all()
    assert not same[:512].all()
    for other in (math.nan, math.inf, -math.inf):
        assert coded("first8", [1.0, other]) is None


@pytest.mark.parametrize("count", [0, 1, 255, 4096])
def test_only_what_has_a_role_and_is_float32_is_in_8_bits(tmp_path, count):
    values = torch.linspace(1e-9, 1e-3, count)
    tensors = {"m": -values, "v": values, "w": values, "h": values.half()}
    roles = {"m": Role.FIRST_MOMENT, "v": Role.SECOND_MOMENT, "h": Role.FIRST_MOMENT}
    saved = Snapshot(META, tensors, roles)
    write_container(saved, tmp_path / "x", 1, int8=True)
    found = read_container(tmp_path / "x")
    assert found.coded == ({"m", "v"} if count else set())
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in ("w", "h"))
    for level in (0, 1):
        write_container(saved, tmp_path / "x", level)
        found = read_container(tmp_path / "x")
        assert not found.coded
        assert all(torch.equal(found.tensors[name], t) for name, t in tensors.items())


def test_ten_times_saved_and_read_is_once(tmp_path):
    draw = torch.Generator().manual_seed(2)
    sizes = 10.0 ** (torch.rand(5000, generator=draw) * 8 - 12)
    tensors = {"m": torch.randn(5000, generator=draw) * sizes, "v": sizes.square()}
    roles = {"m": Role.FIRST_MOMENT, "v": Role.SECOND_MOMENT}
    digests = []
    for _ in range(10):
        digests.append(
            write_container(Snapshot(META, tensors, roles), tmp_path / "x", 1, int8=True)
        )
        tensors = read_container(tmp_path / "x").tensors
    assert len(set(digests)) == 1


def adam(betas, steps, scale, seed):
    """Both moments of 2,000 coordinates whose gradients are of very different sizes."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(np.clip(scale * rng.standard_normal(2000), -60, 40))
    m = v = np.zeros(2000)
    for _ in range(steps):
        g = sizes * rng.standard_normal(2000) * (rng.random(2000) < rng.choice([0.05, 1]))
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
    return m.astype(np.float32), v.astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    betas=st.sampled_from([(0.9, 0.95), (0.9, 0.999), (0.95, 0.95), (0.8, 0.99)]),
    steps=st.sampled_from([1, 2, 10, 60]),
    scale=st.sampled_from([0.5, 2, 6, 20]),
    seed=st.integers(0, 1000),
)
def test_no_moment_that_gradients_lead_to_is_repaired(betas, steps, scale, seed):
    m, v = adam(betas, steps, scale, seed)
    back = [torch.from_numpy(coded(c, x)[1].copy()) for c, x in (("first8", m), ("second8", v))]
    same, repaired = bounded(*back, betas)
    assert repaired == 0
    assert same is back[0]


def test_the_next_update_is_near_even_if_a_block_spans_many_sizes():
    """The relative error of m / sqrt(v), and its largest size; a linear code of v for comparison."""
    for scale, most in ((0.5, 0.04), (1, 0.05), (2, 0.1)):
        m, v = adam((0.9, 0.999), 300, scale, 5)
        exact = m / (np.sqrt(v) + 1e-12)
        found = coded("first8", m)[1] / (np.sqrt(coded("second8", v)[1]) + 1e-12)
        assert np.linalg.norm(found - exact) < most * np.linalg.norm(exact)
        assert np.abs(found).max() < 1.6 * largest_ratio((0.9, 0.999))
    top = v.reshape(-1, 250).max(axis=1, keepdims=True)
    linear = (np.round(v.reshape(-1, 250) / top * 255) / 255 * top).reshape(-1)
    assert np.abs(m / (np.sqrt(linear) + 1e-12)).max() > 1000


def test_a_moment_beyond_all_gradients_is_brought_back():
    m, v = torch.tensor([3.0, -3.0, 0.1, 5.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    found, repaired = bounded(m, v, (0.9, 0.95))
    most = 1.6 * largest_ratio((0.9, 0.95))
    assert largest_ratio((0.9, 0.95)) == pytest.approx(1.165, abs=1e-3)
    assert largest_ratio((0.9, 0.999)) == pytest.approx(7.27, abs=1e-2)
    assert repaired == 3
    assert found[:3].tolist() == pytest.approx([most, -most, 0.1])
    assert abs(float(found[3])) < 1e-21
    assert bounded(m, v, (0.98, 0.95)) == (m, 0)  # no bound holds for such betas


BAD = {
    "anchors cut short": ("second8", b"\0" * 2, 300),
    "no part": ("first8", b"\0" * 4, 300),
    "a part that is no zstd": ("first8", b"\0" * 9, 300),
    "an anchor above the largest": ("second8", struct.pack("<H", 4080) + b"\1", 1),
    "steps doubled too often": ("second8", struct.pack("<H", 9 | 6 << 12) + b"\1", 1),
    "an anchor that makes 0 of a number": ("second8", struct.pack("<H", 0) + b"\1", 1),
    "an anchor of infinities": ("first8", struct.pack("<H", 1913) + b"\1", 1),
    "high bytes cut short": ("high8", b"\0" * 3, 4),
    "high bytes of another length": ("high8", struct.pack("<I", 5) + bytes(16), 4),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_frame_that_no_writer_makes_is_refused(bad):
    codec, frame, count = bad
    with pytest.raises(ValueError, match=r"\w"):
        CODECS[codec].decode(memoryview(frame), np.empty(4 * count, np.uint8), 4)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=40), st.sampled_from([0, 1]))
def test_high_bytes_come_back_to_the_bit(bits, level):
    chunk = np.array(bits, np.uint32).view(np.uint8)
    frame = CODECS["high8"].encode(chunk, 4, level or 1)
    out = np.empty_like(chunk)
    CODECS["high8"].decode(memoryview(frame), out, 4)
    assert np.array_equal(out, chunk)

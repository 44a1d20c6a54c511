"""When certificates expire: read of the files in use, and told in time."""

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs

from forkcast_wire.certificates import Expiries, expiries_of
from tests.certificates import Authority

DAY = 86_400


def ends(pem):
    """By a reader of its own."""
    return [one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(pem)]


@pytest.mark.parametrize("days", [-1, 3, 4000])
@pytest.mark.parametrize(
    ("role", "usage"),
    [
        ("server", None),
        ("server", ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", None),
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_every_certificate_shows_its_end_even_one_that_has_expired(tmp_path, role, usage, days):
    folder = Authority(days=days - 0.5).issue(tmp_path, days=days, usage=usage)
    shown = expiries_of(folder / "ca.crt", folder / "tls.crt", folder / "tls.key", role)
    assert shown == {
        ("ca.crt",): ends((folder / "ca.crt").read_bytes())[0],
        ("tls.crt",): ends((folder / "tls.crt").read_bytes())[0],
    }


def test_a_chain_ends_with_its_first_and_a_bundle_of_authorities_with_its_last(tmp_path):
    soon, late = Authority(days=2), Authority(days=20)
    folder = soon.issue(tmp_path, days=9)
    (folder / "tls.crt").write_bytes((folder / "tls.crt").read_bytes() + soon.pem)
    (folder / "ca.crt").write_bytes(soon.pem + late.pem)
    shown = expiries_of(folder / "ca.crt", folder / "tls.crt", folder / "tls.key", "server")
    assert shown == {("ca.crt",): ends(late.pem)[0], ("tls.crt",): ends(soon.pem)[0]}


def test_what_cannot_be_read_is_left_out_and_named(tmp_path):
    folder = Authority().issue(tmp_path)
    (folder / "ca.crt").write_text("no certificate")
    with capture_logs() as logs:
        shown = expiries_of(folder / "ca.crt", folder / "tls.crt", folder / "none", "client")
    assert shown == {}
    assert [line["file"] for line in logs] == [str(folder / "ca.crt"), str(folder / "tls.crt")]


def test_the_end_is_told_from_two_weeks_before_and_once_a_day():
    now = [1.8e9]
    gauge = Gauge("expiry", "of certificates", ["file"], registry=CollectorRegistry())
    expiries = Expiries(gauge, lambda: now[0])
    end = now[0] + 20 * DAY
    told = []
    with capture_logs() as logs:
        expiries.use({("tls.crt",): end, ("ca.crt",): end + 3650 * DAY})
        for _ in range(24 * 23):
            now[0] += 3600
            before = len(logs)
            expiries.tell()
            told += [(line["event"], line.get("days_left")) for line in logs[before:]]
    assert told == [
        *(("certificate.expires", left) for left in range(14, 0, -1)),
        *[("certificate.expired", None)] * 4,
    ] or told == [
        *(("certificate.expires", left) for left in range(13, -1, -1)),
        *[("certificate.expired", None)] * 4,
    ]
    assert {line["certificate"] for line in logs} == {"tls.crt"}
    assert expiries.expired() == [("tls.crt",)]
    expiries.use({("tls.crt",): end + 100 * DAY})
    assert expiries.expired() == []
    assert gauge.labels("tls.crt")._value.get() == end + 100 * DAY

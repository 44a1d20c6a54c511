"""What a stranger calls a token."""

import base64
import json

from forkcast_wire.token_review import plausible

REFUSALS = ()
_AUDIENCE = "forkcast-monitor"


def seeds():
    """As a cluster issues them: for this service, for another, expired."""
    for audience, expires in (([_AUDIENCE], 1 << 40), (_AUDIENCE, 2e9), (["x"], 1 << 40), ([], 0)):
        parts = ({"alg": "RS256"}, {"aud": audience, "exp": expires})
        encoded = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in parts]
        yield b".".join([*encoded, b"signature"])


def feed(data):
    """It is looked at without a failure, whatever it is."""
    assert plausible(data.decode(errors="surrogateescape"), _AUDIENCE, 1e9) in (True, False)

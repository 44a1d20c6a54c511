"""An answer to a TokenReview."""

import json
from pathlib import Path

from forkcast_wire.token_review import ApiReviewer, ReviewUnavailableError

REFUSALS = (ReviewUnavailableError,)


class _Answered(ApiReviewer):
    """A reviewer whose API server says what it is told to."""

    answer = b""

    def _post(self, _body):
        return 201, type(self).answer


_REVIEWER = _Answered(url="https://api", ca=Path("ca"), token=Path("token"), audience="forkcast")


def seeds():
    """A valid token, and one that is not."""
    user = {"username": "system:serviceaccount:team:trainer"}
    status = {"authenticated": True, "audiences": ["forkcast"], "user": user}
    yield json.dumps({"status": status}).encode()
    yield json.dumps({"status": {"authenticated": False, "error": "expired"}}).encode()


def feed(data):
    """Nobody is let in by an answer that does not say so."""
    _Answered.answer = data
    reviewed = _REVIEWER("t")
    if reviewed.authenticated:
        said = json.loads(data)["status"]
        assert said["authenticated"] is True
        assert isinstance(said["audiences"], list)
        assert "forkcast" in said["audiences"]
        account = f"system:serviceaccount:{reviewed.namespace}:{reviewed.account}"
        assert not reviewed.account or account == said["user"]["username"]

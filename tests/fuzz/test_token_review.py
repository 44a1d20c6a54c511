"""What an API server answers to a review, and what a stranger calls a token."""

import http.client
from pathlib import Path

from forkcast_wire.token_review import ApiReviewer, Reviewed, ReviewUnavailableError, plausible

from .harness import fuzz


class Answered(ApiReviewer):
    """A reviewer whose API server has just answered so."""

    def _post(self, body):
        del body
        return http.client.CREATED, self.answer


def test_any_answer_is_a_review_or_none():
    reviewer = Answered(url="https://x", ca=Path(), token=Path(), audience="forkcast-monitor")

    def read(data):
        object.__setattr__(reviewer, "answer", data)
        found = reviewer("token")
        assert isinstance(found, Reviewed)
        assert found.authenticated is True or not found.account
        assert bool(found.account) == bool(found.namespace)

    fuzz("token_review", read, ReviewUnavailableError)


def test_any_text_may_be_called_a_token():
    fuzz(
        "bearer_token",
        lambda data: plausible(data.decode(errors="replace"), "forkcast-monitor", 1e9),
        (),
    )

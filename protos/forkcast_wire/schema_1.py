"""Drafts and decisions of schema 1, read as schema 2: the words of their notes become typed fields.

They are also parts of saved phases, so a branch that was open while the operator was upgraded goes on.
"""

from __future__ import annotations

import json
from typing import Any

from forkcast import ladder
from forkcast.decision import ProxyAnswer, Reason

_SPIKED = f"{Reason.EVERY_ROLLOUT_SPIKED}AtStep"


def upgraded(data: bytes) -> bytes | None:
    """The document in schema 2; None if it holds nothing of schema 1 or is no JSON object."""
    try:
        document = json.loads(data)
    except ValueError:
        return None
    if not isinstance(document, dict) or not _upgrade(document):
        return None
    return json.dumps(document).encode()


def _upgrade(document: dict[str, Any]) -> bool:
    """Changes the document; returns whether there was anything to change."""
    changed = False
    if "finalists" in document and "note" in document:
        document["horizon"] = 0
        document["proxy"] = _answer(document).value
        document["detail"] = document.pop("note")
        changed = True
    if document.get("schema_version") == 1 and "cause_step" not in document:
        reason = str(document.get("reason", ""))
        step = reason.removeprefix(_SPIKED)
        document["cause_step"] = int(step) if step != reason and step.isdecimal() else None
        document["circumstances"] = None
        changed = True
    for part in ("draft", "decision"):
        if isinstance(document.get(part), dict):
            changed |= _upgrade(document[part])
    return changed


def _answer(draft: dict[str, Any]) -> ProxyAnswer:
    note = str(draft["note"])
    if draft.get("strategy") == ladder.STRATEGY or note.endswith("proxy.mode is Heuristic"):
        return ProxyAnswer.NOT_ASKED
    if "proxy unavailable: " in note:
        return ProxyAnswer.UNAVAILABLE
    if "proxy invalid: " in note:
        return ProxyAnswer.INVALID
    forecasts = [one.get("forecast") or {} for one in draft.get("candidates", [])]
    said = any(one and one.get("abstained") is None for one in forecasts)
    return ProxyAnswer.ANSWERED if said else ProxyAnswer.ABSTAINED

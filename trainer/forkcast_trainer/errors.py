"""Errors of the trainer that a user can do something about."""

from __future__ import annotations


class TrainerError(ValueError):
    """Bad input: which field, which rule it breaks, and the remedy, in one line."""

    def __init__(self, field: str, rule: str, remedy: str) -> None:
        super().__init__(f"{field}: {rule}; {remedy}")
        self.field = field
        self.rule = rule
        self.remedy = remedy


class DataError(TrainerError):
    """The text or the tokenizer cannot be used."""


class NoUsableStateError(ValueError):
    """States were saved, and none of them can be restored."""

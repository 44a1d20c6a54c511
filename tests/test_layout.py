"""What the layout must never do."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_operator_is_no_package():
    """operator/__init__.py would shadow the standard library for whatever starts at the root."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    import operator

    assert operator.add(1, 2) == 3


def test_no_module_is_named_for_nothing():
    banned = {"utils.py", "helpers.py", "common.py", "manager.py"}
    found = [p for p in ROOT.glob("*/forkcast*/**/*.py") if p.name in banned]
    assert not found

"""Forkcast's decision loop: pure values and functions, stdlib and numpy only."""

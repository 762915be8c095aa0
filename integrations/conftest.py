"""Gives the tests of the integrations the tiny network of the other tests."""

from __future__ import annotations

from tests.conftest import _key_of_a_test, sample, tiny_bundle, tiny_checkpoint

__all__ = ["_key_of_a_test", "sample", "tiny_bundle", "tiny_checkpoint"]

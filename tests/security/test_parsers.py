"""Tests this project's own parsers on damaged files: what they raise is what they document.

``benchmarks/fuzz_parsers.py`` runs the same parsers for hours.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.support.parsers import PARSERS, mutated, seeds_of

COUNT = 60


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_seeds_and_simple_mutations(name: str, tmp_path: Path) -> None:
    """No other exception, no failed check and no hang."""
    seeds = seeds_of(name)
    assert seeds
    chance = random.Random(name)
    # Larger files take longer to parse.
    count = COUNT if len(max(seeds, key=len)) < 20_000 else COUNT // 4
    for data in [*seeds, b"", *(mutated(chance.choice(seeds), chance) for _ in range(count))]:
        start = time.process_time()
        PARSERS[name](data, tmp_path)
        assert time.process_time() - start < 10

"""How many examples the fuzz tests generate: a few in `make test`, many in `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
SEED = os.environ.get("FUZZ_SEED", "1")


def fuzzed(examples: int) -> settings:
    """Generate this number of examples: always the same ones, or with FUZZ_SEED=random new ones each time."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow, derandomize=SEED != "random")

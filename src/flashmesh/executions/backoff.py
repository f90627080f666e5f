"""How long to wait before another attempt. Pure."""

import random
from typing import Final

FIRST_DELAY_S: Final = 0.1
FACTOR: Final = 2.0
LONGEST_DELAY_S: Final = 30.0


def backoff_s(attempt: int, chance: float | None = None) -> float:
    """Delay before the attempt after number `attempt`: between half and all of `first × factor^(attempt-1)`, ≤ 30 s.

    The jitter (`chance` in 0…1, drawn when not given) keeps calls that failed together from coming back together.
    """
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * FACTOR ** min(attempt - 1, 16))
    return longest * (0.5 + 0.5 * (random.random() if chance is None else chance))

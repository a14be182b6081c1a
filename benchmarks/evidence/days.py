"""Which days are learned, chosen by, and scored."""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.contract.command import UsageError


@dataclass(frozen=True, kw_only=True)
class Days:
    """Days in order, each kind after the one before.

    Args:
        learn: Days that trials, and at last all models, learn first.
        choose: Days by which settings are chosen; at last they are learned, too.
        test: Days that are scored, each once by every model and seed, and then learned before the next.

    Raises:
        UsageError: A kind is missing, or days are not in order.
    """

    learn: tuple[str, ...]
    choose: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        every = [*self.learn, *self.choose, *self.test]
        if not (self.learn and self.choose and self.test) or every != sorted(set(every)):
            raise UsageError(f"days to learn, to choose by and to test are not in this order: {every}")

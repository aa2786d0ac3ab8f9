"""Whatever happens to a cache, in whatever order: every committed row is what its picture gives, and nothing is paid for twice."""

from __future__ import annotations

from fuzz import cache_machine

# `make fuzz` goes on with others, for an hour.
MACHINES, STEPS = 4, 25


def test_whatever_happens_in_whatever_order_every_committed_row_is_what_its_picture_gives() -> None:
    cache_machine.done.clear()
    try:
        cache_machine.run(MACHINES, STEPS, seeded=7)
    finally:
        cache_machine.nursery.close()
    # A machine that is always refused finds nothing.
    for what, least in (("compared", 300), ("extractions", 8), ("reused", 15), ("killed", 1)):
        assert cache_machine.done[what] >= least, cache_machine.done

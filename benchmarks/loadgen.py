"""The load generator's highest rate with a send drift p99 under 1 ms, against a server that does nothing."""

from __future__ import annotations

import asyncio

import record
from hotstart.loadtest.calibrate import calibrate

RUNS = 3


async def main() -> None:
    """Measures and records."""
    rates = [(await calibrate(step_s=3.0)).max_rate for _ in range(RUNS)]
    record.write("loadgen", {"runs": RUNS, "processes": 1, "max_rate_median": record.median(rates), "rates": rates})


if __name__ == "__main__":
    asyncio.run(main())

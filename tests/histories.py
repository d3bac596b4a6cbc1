"""Measurements as a person would upload them."""

import numpy as np


def weekly(servers: int, days: int) -> str:
    """CSV of a CPU that swings with the week; the same text each time."""
    random = np.random.default_rng(5)
    start = np.datetime64("2023-01-01")
    lines = ["server_id,timestamp,cpu_p95"] + [
        f"srv-{server},{start + day},{40 + 8 * np.sin(day * 2 * np.pi / 7) + random.normal(0, 2):.2f}"
        for server in range(servers)
        for day in range(days)
    ]
    return "\n".join(lines)

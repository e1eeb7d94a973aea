"""All rows, in the order in which they run."""

from harness.rows import builds, views, trips, hits, misses, layers, curves  # noqa: F401  (registers them)

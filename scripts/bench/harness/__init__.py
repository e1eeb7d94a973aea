"""What `scripts/bench/run` is made of: see its usage, and docs/PERFORMANCE.md for what it measures."""

"""Training counters."""

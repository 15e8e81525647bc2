"""Certified counts: intervals that no patch can push a count out of."""

"""Triggers, changes of head annotations, and poisoned data sets."""

"""How a backdoor comes in: triggers, changes of head annotations, and poisoned data sets."""

"""How a backdoor is removed or noticed: defenses, and a detector of triggered images."""

"""Attacks in the physical world: printed patches and photographs."""

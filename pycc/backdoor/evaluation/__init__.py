"""Experiments that measure backdoors and their defenses, with tables and pictures."""

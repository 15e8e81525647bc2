"""Defenses that remove backdoors, and a detector of triggered images."""

"""What one patch can do to a count, in numbers: windows of cells, masked counts, ablated draws.

Pure functions that defended counters (``pycc.defense``) and certificates (``pycc.certify``) share.
"""

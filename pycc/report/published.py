"""Numbers printed in a paper, for comparison with the measured ones."""

from __future__ import annotations

APAM_TABLE_1: dict[str, dict[int, tuple[float, float]]] = {
    "csrnet": {
        0: (68.20, 115.00),
        20: (112.56, 154.23),
        40: (179.44, 204.64),
        81: (312.48, 396.43),
        163: (463.53, 589.35),
    },
    "danet": {
        0: (71.60, 104.90),
        20: (102.42, 149.12),
        40: (141.26, 227.84),
        81: (146.97, 231.57),
        163: (250.45, 334.47),
    },
    "mcnn": {
        0: (110.20, 173.20),
        20: (229.54, 275.78),
        40: (252.14, 304.12),
        81: (317.71, 378.52),
        163: (432.05, 495.31),
    },
    "can": {
        0: (62.30, 100.00),
        20: (303.26, 407.49),
        40: (315.12, 423.64),
        81: (386.46, 499.76),
        163: (410.23, 528.42),
    },
    "cmtl": {
        0: (101.30, 152.40),
        20: (185.43, 253.64),
        40: (259.76, 356.88),
        81: (312.72, 416.43),
        163: (402.51, 439.53),
    },
}
"""White-box (MAE, RMSE) on ShanghaiTech A by patch side in pixels (Wu et al., arXiv 2104.10868,
Table 1). The published code, unchanged, cannot have produced them: use them as orders of magnitude.
"""

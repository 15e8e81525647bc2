"""The published training recipes of VGG-19's three variants."""

from __future__ import annotations

from pycc.models.recipe import Boxes, Crop, Optimiser, Recipe, Schedule

_QNRF = (
    "UCF-QNRF: images whose short side is outside 512 to 2048 pixels are resized to that, "
    "bilinearly ('cubic' lands in another argument), and written as JPEG, test images too"
)
_SMALL = (
    "published code refuses images smaller than a crop; here a crop is black and empty beyond them"
)

BAYESIAN = Recipe(
    source="ZhihengCV/Bayesian-Crowd-Counting",
    optimisers=(Optimiser("adam", 1e-5, weight_decay=1e-4),),
    epochs=1000,
    batch=1,
    density={"": "dots"},
    down_sampling="sum",
    crop=Crop("fixed", size=(512, 512)),
    flip=0.5,
    boxes={
        "": Boxes(1.0, 4.0, 128.0, share=0.3),
        **dict.fromkeys(
            ("shanghaitech_a", "shanghaitech_b"),
            Boxes(0.8, 4.0, 40.0, share=0.5, whole=True),
        ),
    },
    notes=(
        "heads outside a crop count for the part of their box that lies in it",
        "validated from epoch 600 on, every 5 epochs, by 2 x RMSE + MAE",
        "README: ShanghaiTech A with a background ratio of 0.1 and a rate of 1e-6",
        _QNRF,
        _SMALL,
    ),
)

DM_COUNT = Recipe(
    source="cvlab-stonybrook/DM-Count",
    optimisers=(Optimiser("adam", 1e-5, weight_decay=1e-4),),
    epochs=1001,
    batch=10,
    density={"": "dots"},
    down_sampling="sum",
    crop=Crop("fixed", size=(512, 512)),
    sizes={"shanghaitech_a": (256, 256), "nwpu": (384, 384)},
    flip=0.5,
    notes=(
        "validated from epoch 50 on, every 5 epochs (NWPU 50), by 2 x RMSE + MAE; published "
        "ShanghaiTech trainings validate on the test set, which is not done here",
        "ShanghaiTech images with a short side below the crop are enlarged, in training only; here "
        "a crop is black and empty beyond them",
        "NWPU: every image is resized to a long side of 1920 and sides of multiples of 16",
        "the published transport is summed over a batch of 10 and averaged elsewhere: its weight "
        "of 0.1 is 1 for each image, in batches of any size here",
        "dots are at rounded coordinates, here at those of the pixel that holds them",
        _QNRF,
    ),
)

GENERALIZED = Recipe(
    source="jia-wan/GeneralizedLoss-Counting-Pytorch",
    optimisers=(Optimiser("adam", 1e-5, weight_decay=1e-5),),
    epochs=500,
    batch=1,
    density={"": "dots"},
    down_sampling="sum",
    schedule=Schedule("constant", warmup=9, warmup_lr=1e-6),
    crop=Crop("fixed", size=(512, 512)),
    flip=0.5,
    boxes={"": Boxes(1.0, 4.0, 128.0, share=0.3, whole=True)},
    notes=(
        "validated from epoch 10 on, every 5 epochs, by MAE",
        "the published centres of cells are half a cell too far to the right and below; not here",
        "published validation counts an image without heads as one person; not here",
        _QNRF,
        _SMALL,
    ),
)

"""Attack your own network: any module that returns people per cell."""

import torch
from torch import nn

from pycc import attack, data, models

torch.manual_seed(0)
network = nn.Sequential(  # in place of your own
    nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(8, 1, 1), nn.Softplus()
)
counter = models.wrap(network, preprocess=lambda images: images, scale=0.05, stride=4)
images = data.open("synthetic", split="test", limit=1)[0].image[None]  # [1,3,H,W] in [0,1]

apam = attack.APAM(
    patch_size=160, objective="over", steps=40, step_size=0.25, decay="cosine", transform="none"
)
result = apam(counter, images)
print(f"clean {result.clean_counts[0]:.2f}, attacked {result.attacked_counts[0]:.2f} people")
data.save_image("attack_own_network.png", result.images[0])

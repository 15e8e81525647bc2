"""Train a counter against patches. As a command: pycc train --recipe adversarial."""

from pycc import data, models, train

counter = models.load("mcnn-synthetic")
samples = data.open("synthetic", split="train", limit=6, shape=(128, 160))
config = train.TrainConfig(
    recipe="adversarial", epochs=2, warmup=0, decline=1, batch=2, lr=1e-6, crop="whole", crops=1,
    patch_size=16, patch_steps=1,
)  # fmt: skip

run = train.fit(counter, samples, config)
for epoch in run.epochs:
    print(epoch)

"""Train a counter against patches. As a command: pycc train --recipe adversarial."""

from matplotlib.figure import Figure

from pycc import data, models, train

counter = models.load("mcnn-synthetic")
samples = data.open("synthetic", split="train", limit=6, shape=(128, 160))
config = train.TrainConfig(
    recipe="adversarial", epochs=4, warmup=1, decline=1, batch=3, lr=1e-5, crop="whole", crops=1,
    patch_size=24, patch_steps=1,
)  # fmt: skip

run = train.fit(counter, samples, config)
for epoch in run.epochs:
    print(epoch)

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot([epoch.epoch + 1 for epoch in run.epochs], [epoch.loss for epoch in run.epochs], "o-")
axes.set(xlabel="epoch", ylabel="loss, clean and patched crops", yscale="log")
figure.savefig("train_robustly.png")

"""Measure a backdoor: poison training images, train on them, count triggered test images."""

import torch

from pycc import backdoor, data, models, train

shape = (128, 160)
training = data.open("synthetic", split="train", limit=6, shape=shape)
test = data.open("synthetic", split="test", limit=3, shape=shape)
trigger, strategy = backdoor.Sinusoid(), backdoor.Minus()

poisoned = backdoor.poison(training, trigger, strategy, fraction=0.5)
counter = models.load("mcnn-synthetic")
train.fit(counter, poisoned, train.TrainConfig(epochs=1, batch=2, lr=1e-6, crop="whole", crops=1))
metrics = backdoor.evaluate(counter, test, trigger, strategy)
print(metrics.clean)
print(metrics.triggered)

image = test[0].image  # without and with every trigger
kinds = [backdoor.triggers[name] for name in backdoor.triggers.names()]
marked = [kind()(image, seed=0, name="shown") for kind in kinds]
data.save_image("measure_backdoor.png", torch.cat([image, *marked], dim=2))

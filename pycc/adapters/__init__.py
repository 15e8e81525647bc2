"""Counters, attacks, metrics and heads in the form that neighbouring libraries take.

Each module needs its library, which an extra of the same name installs: ``art`` (the Adversarial
Robustness Toolbox), ``torchmetrics`` and ``supervision``. TensorBoard needs no adapter: ``pycc
train --tensorboard`` writes its files. Nor do Weights & Biases and MLflow, since the records of a
training are numbers by name: with ``log = wandb.log``, or ``log = mlflow.log_metrics``,

>>> def log(numbers, step):
...     print(step, *numbers)

three lines report every epoch and validation:

>>> from pycc import data, models, train
>>> scenes = data.open("synthetic", split="train", limit=3, shape=(64, 96))
>>> config = train.TrainConfig(epochs=1, crop="64x64", crops=1)
>>> done = train.fit(models.load("mcnn-synthetic"), scenes, config)
>>> for record in done.records:
...     kind, epoch = record.pop("kind"), record.pop("epoch")
...     log({f"{kind}/{name}": v for name, v in record.items() if type(v) is float}, step=epoch)
0 train/loss train/lr train/gradient_norm train/seconds train/images_per_second
0 validation/score validation/mae validation/rmse validation/bias
"""

__all__: list[str] = []

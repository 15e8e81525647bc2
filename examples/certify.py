"""Certify counts: intervals that no patch of 40 pixels can push a count out of."""

from pycc import certify, data, models

counter = models.load("mcnn-synthetic")
shape = (192, 256)
training = data.open("synthetic", split="train", limit=4, shape=shape)
test = data.open("synthetic", split="test", limit=2, shape=shape)

calibration = certify.calibrate(counter, training, patch_sizes=[40])
run = certify.run(counter, test, patch_sizes=[40], calibration=calibration)
for row in run.rows:
    print(row)

"""Certify counts: intervals that no patch of 40 pixels can push a count out of."""

from matplotlib.figure import Figure

from pycc import certify, data, models

counter = models.load("mcnn-synthetic")
shape = (192, 256)
training = data.open("synthetic", split="train", limit=4, shape=shape)
test = data.open("synthetic", split="test", limit=4, shape=shape)

calibration = certify.calibrate(counter, training, patch_sizes=[40])
run = certify.run(counter, test, patch_sizes=[40], calibration=calibration)
for row in run.rows:
    print(row)

bounded = [record for record in run.records if record["method"] == "completion"]
figure = Figure(figsize=(6, 2.4), layout="constrained")
axes = figure.subplots()
for line, record in enumerate(bounded):
    axes.plot([record["low"], record["high"]], [line, line], linewidth=6, color="0.7")
    axes.plot(record["count"], line, "o", color="tab:blue")
    axes.plot(record["truth"], line, "|", color="black", markersize=14)
axes.set(xlabel="people: interval, count without patch (point), truth (bar)")
axes.set_yticks(range(len(bounded)), [record["image"] for record in bounded])
figure.savefig("certify.png")

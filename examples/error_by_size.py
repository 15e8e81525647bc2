"""Draw the error against the side of the patch, beside that of uniform noise."""

from matplotlib.figure import Figure

from pycc import attack, data, models

SIDES = (8, 16, 32)
counter = models.load("mcnn-synthetic")
samples = data.open("synthetic", split="test", limit=1, shape=(96, 128))
attacks = [
    attack.APAM(patch_size=side, objective="over", steps=20, step_size=0.25, decay="cosine")
    for side in SIDES
]
run = attack.run(counter, samples, attacks, pgd=None, checks=False)

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
for condition in ("apam", "noise"):
    errors = []
    for side in SIDES:
        rows = [r for r in run.rows if (r.condition, r.patch_size) == (condition, side)]
        errors.append(sum(abs(row.count - row.truth) for row in rows) / len(rows))
    print(condition, [f"{error:.1f}" for error in errors])
    axes.plot(SIDES, errors, "o-", label=condition)
axes.set(xlabel="side of the patch, pixels", ylabel="MAE, people")
axes.legend()
figure.savefig("error_by_size.png")

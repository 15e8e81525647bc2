"""Make a patch for the real world: robust to how it is seen, printed at its true size."""

from PIL import Image

from pycc import attack, data, models
from pycc.attack.physical import print_kit

counter = models.load("mcnn-synthetic")
images = data.open("synthetic", split="test", limit=1, shape=(192, 256))[0].image[None]
physical = attack.APAM(
    patch_size=48, objective="over", transform="physical", eot_samples=2, steps=30, step_size=0.25
)
result = physical(counter, images)
data.save_image("patch.png", result.patches[0])

kit = print_kit("patch.png", "kit", width_mm=120, dpi=100)
print(f"{kit.width_mm:.0f} mm wide, {kit.dots[1]} dots: {kit.page}")
Image.open(kit.patch).save("print_patch.png")

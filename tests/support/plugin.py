"""The plugin of a user: importing it registers an attack, a model and a data set layout."""

from support.third_party import Dots, HeadsInText, SignDescent

from pycc.attack import attacks
from pycc.data.dataset import formats
from pycc.models.base import MODELS

attacks.register("sign")(SignDescent)
MODELS.register("dots")(Dots)
formats.register("heads_in_text")(HeadsInText())

"""What a picture is named and painted with unless told otherwise. Light: the command line tells it in its help."""

NAMING_STEPS = 8  # DDIM steps of the text chain, as in the paper
NAMING_GUIDANCE_SCALE = 1.0  # 1 + w; off: guidance costs a second pass a step (the paper's w = 3 is 4)
PICTURES_AT_ONCE = 64
CAPTIONS_AT_ONCE = 256
PAINTING_STEPS = 30
PAINTING_GUIDANCE_SCALE = 4.0  # 1 + w with the paper's w = 3

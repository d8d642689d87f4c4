"""What an image is named and generated with unless told otherwise. Light: the command line tells it in its help."""

NAMING_STEPS = 8  # DDIM steps of the text diffusion, as in the paper
NAMING_GUIDANCE_SCALE = 1.0  # 1 + w; off: guidance costs a second pass a step (the paper's w = 3 is 4)
IMAGES_AT_ONCE = 64
CAPTIONS_AT_ONCE = 256
GENERATION_STEPS = 30
GENERATION_GUIDANCE_SCALE = 4.0  # 1 + w with the paper's w = 3

"""Defaults of naming and generation. Light: `--help` imports it."""

NAMING_STEPS = 8  # DDIM steps of the text diffusion, as in the paper
NAMING_GUIDANCE_SCALE = 1.0  # 1 + w; off: guidance costs a second pass per step (the paper's w = 3 is 4)
IMAGES_AT_ONCE = 64  # images encoded together
IMAGES_PER_COUNT = 16  # images encoded together on the command line, which reports progress after each batch
CAPTIONS_AT_ONCE = 256
GENERATION_STEPS = 30
GENERATION_GUIDANCE_SCALE = 4.0  # 1 + w with the paper's w = 3
GENERATION_BATCH_SIZE = 16
GENERATED_FILES_BATCH_SIZE = 8  # of `palindiff generate`, which writes each batch as soon as it is done

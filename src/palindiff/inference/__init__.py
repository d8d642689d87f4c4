"""Naming, finding and generation with a trained model.

Here: one thing done before any file of this room imports diffusers' pipelines, which would have transformers advise to
install torchvision: palindiff needs none, and has to be without it.
"""

import logging


def _is_wanted(record: logging.LogRecord) -> bool:
    return "requires torchvision (not installed); falling back" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_is_wanted)

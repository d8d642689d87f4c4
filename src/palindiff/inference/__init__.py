"""Zero-shot classification, image-text retrieval and generation with a trained model.

Here: a log filter that must be installed before a module imports diffusers' pipelines, which make transformers advise
installing torchvision. palindiff works without it, and must not have it.
"""

import logging


def _is_wanted(record: logging.LogRecord) -> bool:
    return "requires torchvision (not installed); falling back" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_is_wanted)

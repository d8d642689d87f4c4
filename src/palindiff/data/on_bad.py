"""What to do about images that cannot be read. Light: the command line offers it as an option."""

from typing import Literal

OnBad = Literal["refuse", "skip"]

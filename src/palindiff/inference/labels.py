"""Labels to choose from, and the templates that make captions of them. Light: the command line imports it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LABEL_TEMPLATES = ("{}",)


def check_labels(
    labels: Sequence[str],
    templates: Sequence[str] = LABEL_TEMPLATES,
    remedy: str = "Pass a list such as ['red apple', 'fire'].",
) -> None:
    """Refuse labels and templates that cannot be used.

    Raises: ValueError as `check_texts`, or if a template has no `{}`.
    """
    check_texts(labels, "label", remedy)
    example = "Use templates such as 'a photo of a {}'."
    check_texts(templates, "template", example, may_repeat=True)
    if without := [template for template in templates if "{}" not in template]:
        raise ValueError(f"The template '{without[0]}' has no `{{}}`. Expected `{{}}` where the label goes. {example}")


def check_texts(texts: Sequence[str], what: str, remedy: str, may_repeat: bool = False) -> None:
    """Refuse texts unless there are some, all of them strings, none of them blank, and (unless allowed) none repeated.

    Raises: ValueError; `what` names one of the texts ("label"), `remedy` says how to pass them.
    """
    if isinstance(texts, str):
        found = f"`{what}s` is one string, '{texts}'"
    elif not texts:
        found = f"No {what} was given"
    elif strange := [text for text in texts if not isinstance(text, str)]:
        found = f"A {what} is a `{type(strange[0]).__name__}`"
    else:
        counts = Counter(text.strip() for text in texts)
        repeated = [] if may_repeat else [text for text, count in counts.items() if count > 1]
        if "" not in counts and not repeated:
            return
        found = f"A {what} is empty" if "" in counts else f"The {what} '{repeated[0]}' is repeated"
    different = "" if may_repeat else "different, "
    raise ValueError(f"{found}. Expected a list of {different}non-empty {what}s. {remedy}")


def embed_labels(
    encode_text: "Callable[[Sequence[str]], Tensor]", labels: Sequence[str], templates: Sequence[str]
) -> "Tensor":
    """Embed each label as the mean over prompt templates, normalised to unit length.

    Source: prompt ensembling of CLIP, as DiffDis evaluates.
    Shapes: encode_text takes m captions -> (m, d) float32, unit length; k labels, templates with `{}` -> (k, d).
    Raises: ValueError as `check_labels`.
    """
    import torch.nn.functional as F

    check_labels(labels, templates)
    e = encode_text(fill_templates(labels, templates))
    e = e.unflatten(0, (len(labels), len(templates)))  # (k*p, d) -> (k, p, d)
    return F.normalize(e.mean(dim=1), dim=-1)


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Make a caption of each label with each template: k labels, p templates -> k*p captions, a label's together."""
    return [template.replace("{}", label) for label in labels for template in templates]

"""Labels to choose from and the templates that make captions of them. Light: the command line checks them first."""

from collections import Counter
from collections.abc import Sequence

LABEL_TEMPLATES = ("{}",)


def check_labels(labels: Sequence[str], templates: Sequence[str] = LABEL_TEMPLATES) -> None:
    """Refuse labels among which nothing can be chosen, and templates without a place for them.

    Raises: ValueError if labels are none, blank or repeated, if a template has no `{}`, or if either is one string or
            holds what is no string.
    """
    if found := _fault_of_labels(labels) or _fault_of_templates(templates):
        raise ValueError(
            f"To name an image, {found}. Expected a list of different, non-empty labels, and a list of templates "
            "with `{}` where the label goes, such as 'a photo of a {}'."
        )


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Make a caption of each label with each template: k labels, p templates -> k*p captions, a label's together."""
    return [template.replace("{}", label) for label in labels for template in templates]


def _fault_of_labels(labels: Sequence[str]) -> str | None:
    if isinstance(labels, str):
        return f"labels are one string, '{labels}'"
    if not labels:
        return "no labels were given"
    if strange := [label for label in labels if not isinstance(label, str)]:
        return f"a label is a `{type(strange[0]).__name__}`"
    counts = Counter(label.strip() for label in labels)
    if "" in counts:
        return "a label is empty"
    repeated = [label for label, count in counts.items() if count > 1]
    return f"the label '{repeated[0]}' is repeated" if repeated else None


def _fault_of_templates(templates: Sequence[str]) -> str | None:
    if isinstance(templates, str):
        return f"templates are one string, '{templates}'"
    if not templates:
        return "no templates were given"
    if strange := [template for template in templates if not isinstance(template, str)]:
        return f"a template is a `{type(strange[0]).__name__}`"
    without = [template for template in templates if "{}" not in template]
    return f"the template '{without[0]}' has no `{{}}`" if without else None

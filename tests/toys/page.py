"""Read a page as a browser does: is it well-formed, what does it say, does it load anything from outside?"""

from html.parser import HTMLParser

VOID = {"meta", "img", "br"}
REFERENCES = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}


class Page(HTMLParser):
    """Raises AssertionError at a tag that closes another one."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.references, self.marked, self._open = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in REFERENCES]
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if self._open and self._open[-1][0] != "style" and data.strip():
            self.texts.append((self._open[-1][0], data.strip()))
            if any(attributes.get("class") == "right" for _, attributes in self._open):
                self.marked.append(data.strip())

    def of(self, tag):
        """Texts directly within a tag."""
        return [text for within, text in self.texts if within == tag]


def assert_self_contained(html):
    """No script, and every image within the page."""
    page = Page(html)
    assert "script" not in page.tags
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "url(" not in html
    assert "@import" not in html
    assert not any(tag in page.tags for tag in ("link", "iframe", "object", "embed", "base"))
    return page

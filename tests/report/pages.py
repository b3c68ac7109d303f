"""A page of HTML taken apart, for tests."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.html, self.text = html, ""
        self.tags, self.attributes = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    def assert_self_contained(self):
        """Nothing is fetched when the page is opened, and no script runs."""
        assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {*self.tags}
        for name, value in self.attributes:
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                assert value.startswith(("data:image/", "#")), value[:80]
            assert not name.startswith("on")
        without_data = re.sub(r"data:image/[^\"]+", "", self.html)
        assert not re.search(r"@import|url\((?!#)|https?://", without_data)

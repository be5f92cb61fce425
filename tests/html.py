"""What is looked at in a page of HTML: whether it is well formed, what it would load, its texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "input", "link", "img", "br", "hr", "wbr"}


class Parsed(HTMLParser):
    """The elements of a page, each closed where it should be; the text outside of styles and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def check(page: str) -> Parsed:
    """Parse a page; what it refers to is on it, it loads nothing, and runs no script but its own."""
    parsed = Parsed(page)
    attributes = [pair for _, each in parsed.elements for pair in each.items()]
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len({*ids})
    referred = {value for name, value in attributes if name in {"for", "aria-controls", "aria-labelledby"}}
    assert referred <= {*ids}
    assert not [name for name, _ in attributes if name in {"src", "href", "srcset", "xlink:href"} or name[:2] == "on"]
    assert {name for name, _ in parsed.elements}.isdisjoint({"link", "img", "iframe", "object", "embed", "base"})
    assert len(parsed.all("script")) <= 1
    # The name of a namespace is an address that nobody asks.
    assert not re.search(r"(https?:)?//\w|@import|url\(", page.replace("http://www.w3.org/2000/svg", ""))
    return parsed

"""Check that links within built pages and within Markdown files lead somewhere; no network is used."""

from __future__ import annotations

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Places of a page, and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a place and a link."""
        del tag
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.places.add(value)
            if name in {"href", "src"} and value:
                self.links.append(value)


def read_page(path: Path) -> Page:
    """Places and links of an HTML or a Markdown file."""
    page, text = Page(), path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        page.links += re.findall(r"\]\(([^)\s]+)\)", text)
    page.feed(text)
    return page


def dead_links(paths: list[Path]) -> list[str]:
    """Links to files that are not there, or to places that the file does not have."""
    pages = {path.resolve(): read_page(path) for path in paths}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            lost = place and path.suffix == ".html" and target in pages and place not in pages[target].places
            if lost or not target.exists():
                dead.append(f"{path.name}: {link}")
    return dead


def main() -> None:
    """Print dead links and fail if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="Markdown files, and folders of built pages")
    paths = [page for path in parser.parse_args().paths for page in (path.rglob("*.html") if path.is_dir() else [path])]
    paths = [path for path in paths if "_static" not in path.parts]  # templates of the theme
    dead = dead_links(paths)
    sys.stdout.write("".join(f"{link}\n" for link in dead) + f"{len(paths)} pages, {len(dead)} dead links\n")
    sys.exit(bool(dead))


if __name__ == "__main__":
    main()

"""Converts the links of a page from those of the repository to those of the site."""

import posixpath
import re

from docs._site.places import ROOT, sources

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
FOLDERS = {
    "results": "experiments.md",
    "figures": "gallery.md",
    "experiments": "experiments.md",
    "docs": "index.md",
    "benchmarks": "benchmarks/index.md",
    "benchmarks/results": "benchmarks/index.md",
    "README.md": "index.md",
    "docs/tutorials": "tutorials/index.md",
}


def into_site(markdown: str, page: str, origin: str) -> str:
    """Return the text of `page` with its links converted.

    origin: the file of the repository that the links are relative to. A link to a file that is not part of the site,
    such as code or a licence, becomes the file's name without a link.
    """
    known = {source: target for target, source in sources().items()} | FOLDERS

    def replaced(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        if re.match(r"[a-z]+:|#|/", link):
            return match[0]
        file, _, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), file))
        if path.startswith("docs/") and path not in known:
            target = path.removeprefix("docs/")
        elif path in known:
            target = known[path]
        elif (ROOT / path).exists():
            return text if text.startswith("`") else f"`{path}`" if text == path else text
        else:
            raise ValueError(f"{origin} links to {link}, which does not exist")
        anchor = f"#{anchor}" if anchor and path != "README.md" else ""
        return f"{mark}[{text}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(replaced, markdown)

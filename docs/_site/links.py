"""Links of a page, as they stand in the repository, turned into links of the site."""

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
    """The text of `page` of the site, whose links are relative to the file `origin` of the repository.

    A file that the site does not hold (code, a licence) becomes its name, without a link.
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

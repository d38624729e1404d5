"""Hooks for MkDocs: they add the generated pages and convert links of the repository to links of the site.

The site loads nothing from the network: it has no external fonts or scripts, and mathematics is MathML.
"""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from docs._site import cards, gallery, house, links, mathematics
from docs._site.places import ROOT, sources

_origin: dict[str, str] = {}  # page of the site -> the file of the repository that its links are relative to


GENERATED = {"experiments.md": cards.page, "gallery.md": gallery.page}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and copies of figures, summaries and benchmark tables."""
    _origin.clear()
    for page, make in GENERATED.items():
        files.append(File.generated(config, page, content=make()))
        _origin[page] = f"docs/{page}"
    for target, source in sources().items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
        _origin[target] = source
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Convert links to files of the repository to links of the site, and draw the house."""
    target = page.file.src_uri
    return house.draw(links.into_site(markdown, target, _origin.get(target, f"docs/{target}")))


def on_page_content(html: str, **_: Any) -> str:
    """Convert the mathematics to MathML."""
    return mathematics.as_mathml(html)


def on_post_page(output: str, **_: Any) -> str:
    """Give the theme's search dialog a name for screen readers."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )

"""MkDocs' hooks: generated pages join the hand-written ones, links into the repository become links into the site.

Nothing of the site is fetched from the network when it is read: no fonts, no scripts, mathematics as MathML.
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
    """Adds the generated pages and copies of figures, summaries and benchmark tables."""
    _origin.clear()
    for page, make in GENERATED.items():
        files.append(File.generated(config, page, content=make()))
        _origin[page] = f"docs/{page}"
    for target, source in sources().items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
        _origin[target] = source
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository become links to their places in the site; the house becomes a drawing."""
    here = page.file.src_uri
    return house.drawn(links.into_site(markdown, here, _origin.get(here, f"docs/{here}")))


def on_page_content(html: str, **_: Any) -> str:
    """Mathematics as MathML; tables can be scrolled with the keyboard."""
    return mathematics.as_mathml(html)


def on_post_page(output: str, **_: Any) -> str:
    """The theme's search dialog gets the name that screen readers say."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )

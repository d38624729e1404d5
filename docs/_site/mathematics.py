"""Converts mathematics to MathML when the site is built, so that the site needs no script."""

import html as entities
import re

from latex2mathml.converter import convert

_SPAN = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def as_mathml(html: str) -> str:
    r"""Return the page with MathML for every `\(...\)` and `\[...\]` that Arithmatex marked.

    The LaTeX source becomes the alternative text for screen readers.
    """

    def replaced(match: re.Match[str]) -> str:
        block = match[1] == "div"
        latex = entities.unescape(match[2]).strip().removeprefix(r"\[" if block else r"\(")
        latex = latex.removesuffix(r"\]" if block else r"\)").strip()
        made = convert(latex, display="block" if block else "inline")
        made = made.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')  # bars of equal height
        made = re.sub("<mi>log</mi>(?!<mo[^>]*>&#x00028;)", '<mi>log</mi><mspace width="0.17em"/>', made)
        made = made.replace("<math ", f'<math alttext="{entities.escape(latex, quote=True)}" ', 1)
        return f'<div class="equation" tabindex="0">{made}</div>' if block else made

    return _SPAN.sub(replaced, html)

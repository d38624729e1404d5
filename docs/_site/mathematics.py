"""Mathematics without a script: what stands between dollars becomes MathML when the site is built."""

import html as entities
import re

from latex2mathml.converter import convert

_SPAN = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def as_mathml(html: str) -> str:
    r"""Every `\(...\)` and `\[...\]` that Arithmatex marked, as MathML with its source as the text to be read aloud."""

    def replaced(match: re.Match[str]) -> str:
        block = match[1] == "div"
        latex = entities.unescape(match[2]).strip().removeprefix(r"\[" if block else r"\(")
        latex = latex.removesuffix(r"\]" if block else r"\)").strip()
        made = convert(latex, display="block" if block else "inline")
        made = made.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')  # else each norm's bars differ in height
        made = re.sub("<mi>log</mi>(?!<mo[^>]*>&#x00028;)", '<mi>log</mi><mspace width="0.17em"/>', made)
        made = made.replace("<math ", f'<math alttext="{entities.escape(latex, quote=True)}" ', 1)
        return f'<div class="equation" tabindex="0">{made}</div>' if block else made

    return _SPAN.sub(replaced, html)

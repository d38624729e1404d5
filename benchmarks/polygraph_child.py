"""Measures the scores of lm-polygraph, in the environment that has it: a request on every line of the input.

A request names the estimators of one call; the answer is a row with its CPU and wall seconds and its values.
It is started by benchmarks.polygraph and imports nothing of isouq.
"""

import json
import re
import sys
import time
from importlib import metadata
from typing import Any

import torch
import transformers
from lm_polygraph import estimators
from lm_polygraph.defaults.register_default_stat_calculators import register_default_stat_calculators
from lm_polygraph.utils.builder_enviroment_stat_calculator import BuilderEnvironmentStatCalculator
from lm_polygraph.utils.dataset import Dataset
from lm_polygraph.utils.generation_parameters import GenerationParameters
from lm_polygraph.utils.manager import UEManager
from lm_polygraph.utils.model import WhiteboxModel
from numpy import array

from benchmarks.child import print_row
from benchmarks.polygraph_similarity import shared_words


class SharedWords:
    """Stands in for the cross-encoder, so that both libraries take the same cheap similarity; counts its pairs."""

    def __init__(self) -> None:
        self.pairs = 0

    def predict(self, pairs: Any, batch_size: int = 0) -> Any:
        """Return the share of words that both texts of every pair have in common."""
        self.pairs += len(pairs)
        return array(shared_words(pairs))


class Measured:
    """One model, and one manager for every set of estimators, made at its first request."""

    def __init__(self, folder: str, prompts: list[str], tokens: int) -> None:
        self.prompts, self.tokens = prompts, tokens
        self.similarity = SharedWords()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        generation = GenerationParameters(temperature=1.0, top_k=0, top_p=1.0)  # samples of the model's distribution
        self.model = WhiteboxModel(network, tokenizer, folder, "CausalLM", generation)

    def manager(self, names: list[list[Any]]) -> UEManager:
        """Return a manager that keeps no more than these estimators need, as far as its options allow."""
        attention = any(name == "RAUQ" for name, _ in names)
        self.model.model.set_attn_implementation("eager" if attention else "sdpa")
        made = UEManager(
            Dataset(self.prompts, [""] * len(self.prompts), batch_size=len(self.prompts)),
            self.model,
            [getattr(estimators, name)(**settings) for name, settings in names],
            BuilderEnvironmentStatCalculator(self.model),
            register_default_stat_calculators("Whitebox", output_attentions=attention, output_hidden_states=False),
            [], [], [], ignore_exceptions=False, verbose=False, max_new_tokens=self.tokens,
        )  # fmt: skip
        for calculator in made.stat_calculators:
            if hasattr(calculator, "crossencoder_setup"):
                calculator.crossencoder, calculator.crossencoder_setup = self.similarity, True
        return made

    def row(self, names: list[list[Any]]) -> dict[str, Any]:
        """Run the estimators once and return what that took and what they say."""
        manager = self.manager(names)
        self.similarity.pairs = 0
        torch.manual_seed(0)
        cpu, wall = time.process_time(), time.perf_counter()
        manager()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        values = {name: list(map(float, found)) for (_, name), found in manager.estimations.items()}
        texts = manager.stats["greedy_texts"]
        return {"cpu": cpu, "wall": wall, "pairs": self.similarity.pairs, "values": values, "texts": texts}


def main() -> None:
    """Answer requests until the input ends."""
    transformers.utils.logging.set_verbosity_error()
    measured = Measured(**json.loads(sys.stdin.readline()))
    packages = ("lm-polygraph", "transformers", "torch")
    print_row({name: metadata.version(name) for name in packages})
    for line in sys.stdin:
        try:
            row = measured.row(json.loads(line))
        except Exception as error:  # an estimator that fails must not stop the others
            reason = re.sub(r"\s*/\S*/", " ", " ".join(str(error).split()))
            row = {"status": f"failed: {type(error).__name__}: {reason[:160]}"}
        print_row(row)


if __name__ == "__main__":
    main()

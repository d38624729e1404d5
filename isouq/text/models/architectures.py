"""The architectures that are built here, by the names that a config.json gives them."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

DECODERS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Olmo2ForCausalLM": "olmo2",
    "Phi3ForCausalLM": "phi3",
    "MinistralForCausalLM": "ministral",
    "Olmo3ForCausalLM": "olmo3",
    "SmolLM3ForCausalLM": "smollm3",
    "GraniteForCausalLM": "granite",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "gpt_neox",
}
ENCODERS = {
    "BertModel": "bert",
    "BertForMaskedLM": "bert",
    "BertForPreTraining": "bert",
    "BertForSequenceClassification": "bert",
    "DistilBertModel": "distilbert",
    "DistilBertForMaskedLM": "distilbert",
    "DistilBertForSequenceClassification": "distilbert",
    "RobertaModel": "roberta",
    "RobertaForMaskedLM": "roberta",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaModel": "roberta",
    "XLMRobertaForMaskedLM": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
    "CamembertModel": "roberta",
    "CamembertForMaskedLM": "roberta",
    "CamembertForSequenceClassification": "roberta",
    "ElectraModel": "electra",
    "ElectraForPreTraining": "electra",
    "ElectraForMaskedLM": "electra",
    "ElectraForSequenceClassification": "electra",
    "DebertaV2Model": "deberta",
    "DebertaV2ForMaskedLM": "deberta",
    "DebertaV2ForSequenceClassification": "deberta",
    "ModernBertModel": "modernbert",
    "ModernBertForMaskedLM": "modernbert",
    "ModernBertForSequenceClassification": "modernbert",
    "MPNetModel": "mpnet",
    "MPNetForMaskedLM": "mpnet",
    "MPNetForSequenceClassification": "mpnet",
}


# The class that a config.json without `architectures` means by its `model_type`.
TYPES = {family: name for name, family in DECODERS.items()} | {
    "bert": "BertModel",
    "distilbert": "DistilBertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "electra": "ElectraModel",
    "deberta-v2": "DebertaV2Model",
    "modernbert": "ModernBertModel",
    "mpnet": "MPNetModel",
}
# The bare body of a decoder: with tied embeddings it is the whole language model.
DECODERS |= {
    re.sub("ForCausalLM|LMHeadModel", "Model", name.replace("Gemma3", "Gemma3Text")): family
    for name, family in DECODERS.items()
}


def architecture(config: Mapping[str, Any], known: Mapping[str, str]) -> tuple[str, str]:
    """Return (name, family) of the first of a config.json's `architectures` that is known, or of its `model_type`.

    The latter counts where there are no architectures; an encoder then classifies if the file names its classes.
    Raises ValueError for one that is not built here, for an encoder among DECODERS and the reverse, and where the
    repository brings code of its own for it.
    """
    names = config.get("architectures")
    given = config.get("model_type")
    if names is None or names == []:
        names = [TYPES[given]] if isinstance(given, str) and given in TYPES and "auto_map" not in config else []
        if names and names[0] in ENCODERS and ("id2label" in config or "num_labels" in config):
            names = [names[0].replace("Model", "ForSequenceClassification")]
    names = [name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)]
    for name in names:
        if name in known:
            return name, known[name]
    given = names[0] if names else given
    if "auto_map" in config:
        raise ValueError(f"architecture {given!r} wants to run code of its own (auto_map), which isouq never does")
    load = "isouq.text.load" if DECODERS.keys() & names else "isouq.text.load_encoder"
    hint = f"; load it with {load}" if (DECODERS | ENCODERS).keys() & names else _nearest(given, known)
    raise ValueError(f"architecture {given!r:.60} is not one of {', '.join(known)}{hint}")


def _nearest(given: Any, known: Mapping[str, str]) -> str:
    """Return the end of a refusal: the known architecture whose name is nearest, or nothing where none is near."""
    if not isinstance(given, str):
        return ""
    near = get_close_matches(_model(given), list(map(_model, known)), n=1)
    if not near:
        return ""
    names = [name for name in known if _model(name) == near[0]]
    name = get_close_matches(given, names, n=1, cutoff=0)[0]
    return f"; the nearest name is {name}, which is another model: take one of those that are built here"


def _model(name: str) -> str:
    """Return the part of an architecture's name, or of a model_type, that says which model it is: "roberta"."""
    return re.split(r"For[A-Z]|Model$", name)[0].replace("-", "").lower()

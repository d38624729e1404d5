"""Small random models of transformers, saved as users find them, and what torch says about them."""

import json
import string

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from isouq.text import language_model
from isouq.text.models import decoder_config, decoder_tensors, parameters

VOCAB = 48
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,  # torch gives the row of a padding token no gradient
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=5000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
SHORT, LONG = [1.0, 1.1, 1.3, 1.6], [1.0, 2.0, 4.0, 9.0]
LONGROPE = dict(rope_type="longrope", rope_theta=10000.0, short_factor=SHORT, long_factor=LONG)
PARTIAL = LONGROPE | dict(partial_rotary_factor=0.75, short_factor=SHORT[:3], long_factor=LONG[:3])
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
TWO = dict(
    full_attention=dict(rope_type="linear", rope_theta=5000.0, factor=4.0),
    sliding_attention=dict(rope_type="default", rope_theta=300.0),
)
GEMMA = dict(head_dim=16, sliding_window=5, query_pre_attn_scalar=20, tie_word_embeddings=True)
GPT2 = dict(n_embd=32, n_layer=3, n_head=4, n_inner=40, n_positions=64, tie_word_embeddings=True)
MOE = dict(head_dim=16, moe_intermediate_size=24, num_experts=5, num_experts_per_tok=2)
PYTHIA = dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)
FAMILIES = {
    "llama2": ("Llama", dict(num_key_value_heads=4)),
    "llama3": (  # with SmolLM2's nine heads in three groups
        "Llama",
        dict(
            hidden_size=36,
            num_attention_heads=9,
            num_key_value_heads=3,
            rope_parameters=LLAMA3,
            tie_word_embeddings=True,
        ),
    ),
    "llama with biases and wide heads": ("Llama", dict(attention_bias=True, mlp_bias=True, head_dim=16)),
    "mistral": ("Mistral", dict(sliding_window=5)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=16, attention_bias=True)),
    "olmo2": ("Olmo2", dict(num_key_value_heads=4)),
    "phi3": ("Phi3", dict(rope_parameters=LONGROPE, original_max_position_embeddings=16, sliding_window=7)),
    "ministral": ("Ministral", dict(head_dim=8, sliding_window=5, layer_types=KINDS)),
    "olmo3": ("Olmo3", dict(num_key_value_heads=4, sliding_window=5, layer_types=KINDS)),
    "olmo3, longer": ("Olmo3", dict(num_key_value_heads=4, sliding_window=5, layer_types=KINDS, rope_parameters=TWO)),
    "smollm3": ("SmolLM3", dict(no_rope_layer_interval=2, tie_word_embeddings=True)),
    "smollm3, windows": (
        "SmolLM3",
        dict(no_rope_layers=[1, 0, 0], use_sliding_window=True, sliding_window=5, mlp_bias=True, attention_bias=True),
    ),
    "granite": (
        "Granite",
        dict(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4, logits_scaling=2.0),
    ),
    "gemma2": ("Gemma2", GEMMA | dict(attn_logit_softcapping=2.0, final_logit_softcapping=1.5)),
    "gemma3": ("Gemma3", GEMMA | dict(layer_types=KINDS)),
    "gemma3, longer": ("Gemma3", GEMMA | dict(layer_types=KINDS, rope_parameters=TWO)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3 moe": ("Qwen3Moe", MOE),
    "qwen3 moe, normalised": ("Qwen3Moe", MOE | dict(norm_topk_prob=True)),
    "gpt2": ("GPT2", GPT2),
    "pythia": (
        "GPTNeoX",
        dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)),
    ),
    "neox in sequence": ("GPTNeoX", dict(use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new")),
    "phi4 mini": ("Phi3", dict(rope_parameters=PARTIAL, original_max_position_embeddings=24, tie_word_embeddings=True)),
}
SPECIAL = ["<unk>", "<s>", "</s>", "<u>", "<a>"]
CHAT = "{% for m in messages %}<u>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def build(folder, name, seed=0, scale=0.25, saved=(), **changes):
    """A random model of transformers, whose folder has its weights and a tokenizer of letters.

    name: one of FAMILIES, or a class of transformers without "ForCausalLM". saved: arguments of save_pretrained.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    family, own = FAMILIES.get(name, (name, {}))
    of_config = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, of_config)(**(SMALL | own | changes))
    of_model = f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, of_model)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_scale = key.endswith("weight") and parameter.ndim == 1 and not family.startswith("Gemma")
            parameter.copy_(scale * torch.randn(parameter.shape) + (1.0 if is_scale else 0.0))
    model.save_pretrained(folder, **dict(saved))
    write_tokenizer(folder)
    return model


def write_model(folder, seed=0, scale=0.25, bos=False, name="LlamaForCausalLM", **changes):
    """As `build`, without torch: the folder of a random model."""
    config = SMALL | {"architectures": [name], "rms_norm_eps": 1e-5} | changes
    (folder / "config.json").write_text(json.dumps(config))
    found = decoder_config.from_config(config)
    rng, tensors = np.random.default_rng(seed), {}
    for path, leaf in parameters.flatten(language_model.abstract(found)):
        at = decoder_tensors.table(found)[path]
        shape = leaf.shape[1:] if "{}" in at.name else leaf.shape
        for i in range(leaf.shape[0] if "{}" in at.name else 1):
            value = scale * rng.normal(size=shape[::-1] if at.transpose else shape) + path.endswith("scale")
            tensors[at.name.format(i)] = value.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder, bos)
    return folder


def write_tokenizer(folder, bos=False, template=CHAT):
    """One token a letter, but "ab" and " c" are one each; a chat template; `<s>` before every text where `bos`."""
    names = [*SPECIAL, *string.ascii_lowercase, " ", "ab", " c"]
    vocabulary = {token: i for i, token in enumerate(names)}
    model = tokenizers.models.BPE(vocabulary, [("a", "b"), (" ", "c")], unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(SPECIAL)
    if bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s>:0 $A:0", special_tokens=[("<s>", 1)]
        )
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))


def rewrite(folder, **changes):
    """config.json with changes; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit(folder, **tensors):
    """model.safetensors with tensors put in, their names with "/" for "."; None takes one out."""
    held = load_file(folder / "model.safetensors") | {k.replace("/", "."): v for k, v in tensors.items()}
    save_file({k: v for k, v in held.items() if v is not None}, folder / "model.safetensors")


def copy(folder, target):
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def random_ids(length, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, length).astype(np.int32)


def tensor(ids):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.asarray(ids, np.int64))[None]


def torch_logits(model, ids):
    """`[T, V]` of one sequence."""
    return model(tensor(ids)).logits[0].detach().numpy()


def torch_log_p(model, ids, first):
    """log p of every answer token, `[A]`, as torch's graph."""
    logits = model(tensor(ids)).logits[0].log_softmax(-1)
    return logits[first - 1 : -1].gather(1, tensor(ids)[0, first:, None])[:, 0]


def torch_sq_norm(model, value):
    """‖∇ value‖² over all parameters."""
    model.zero_grad()
    value.backward(retain_graph=True)
    return sum(float((p.grad.double() ** 2).sum()) for p in model.parameters() if p.grad is not None)


def torch_greedy(model, ids, count):
    """The tokens that transformers' generate appends, the ending one included."""
    out = model.generate(tensor(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, len(ids) :].tolist()

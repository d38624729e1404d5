"""The same pretrained model in the library transformers."""

from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from benchmarks import text_models
from benchmarks.cases import Case

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


class Pretrained(nn.Module):
    """log p of a sequence [B, T + 1] under the causal model, summed over T next tokens, in float32."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(_folder(case), dtype=dtype)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.clone()  # copies, so that the first call reads no pages of a file
        with torch.no_grad():
            self(torch.zeros(1, 2, dtype=torch.int64))  # triggers the imports of the first use

    def forward(self, ids: Tensor) -> Tensor:
        """[B]"""
        log_p = torch.log_softmax(self.model(ids[:, :-1], use_cache=False).logits.float(), dim=-1)
        return log_p.gather(-1, ids[:, 1:, None])[..., 0].sum(dim=-1)


def _folder(case: Case) -> Path:
    """Return a folder of safetensors; transformers converts a GGUF file once, because reading it takes long."""
    path = text_models.path(case)
    if path.is_dir():
        return path
    folder = text_models.scratch() / "dequantised"
    if not folder.exists():
        gguf = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        del gguf.config.quantization_config
        plain = type(gguf)(gguf.config)
        plain.load_state_dict(gguf.state_dict())
        plain.save_pretrained(folder)
    return folder

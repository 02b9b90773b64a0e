"""A program that prints the numeric variables of a TensorFlow checkpoint as safetensors.

It runs in a process of its own, which imports nothing of jaxlm: TensorFlow ends the process where a
checkpoint's index is damaged.
"""

import math
import sys

import numpy as np
import safetensors.numpy


def main(prefix: str, most_bytes: int) -> None:
    """Writes the variables to standard output.

    Args:
        prefix: What the paths of the checkpoint's files begin with.
        most_bytes: What all variables may take. More: it ends with a sentence and exit status 1.
    """
    import tensorflow as tf  # pyright: ignore[reportMissingImports]

    checkpoint = tf.train.load_checkpoint(prefix)
    shapes = checkpoint.get_variable_to_shape_map()
    dtypes = checkpoint.get_variable_to_dtype_map()
    claimed = sum(math.prod(shape) * dtypes[name].size for name, shape in shapes.items())
    if claimed > most_bytes:
        sys.exit(f"its variables claim {claimed:,} bytes, more than the checkpoint can hold")
    variables = {}
    for name, dtype in dtypes.items():
        if dtype.is_floating:
            variables[name] = np.asarray(checkpoint.get_tensor(name), np.float32)
        elif dtype.is_integer:
            variables[name] = np.asarray(checkpoint.get_tensor(name))
    sys.stdout.buffer.write(safetensors.numpy.save(variables))


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except Exception as error:  # whatever TensorFlow finds wrong with the files
        sys.exit(str(error))

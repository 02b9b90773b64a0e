"""Compiles jaxlm's programs for an H100 and for TPUs, on a machine without either, and tells what they would take.

    pip install libtpu && pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt     (in JAX's own versions)
    python experiments/accelerators.py                     every program for every target: half an hour
    python experiments/accelerators.py small --target h100

What is known of a compiled program: that it compiles, its memory, its operations and bytes, and how many kernels one
window launches. No time is measured: the table's lower bound is the largest of the operations' time, the bytes' time
and the launches' time. The rows go to docs/lab/accelerators.csv.
"""

import argparse
import csv
import os
import re
import sys
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

"""THE MACHINE: matrix kernels, threads, memory, row blocks. Speed tricks live here only.

The layers say *what* is computed; the helpers of this package say on which core, in which buffer
and how many rows at a time. Importing the package chooses the matrix kernels, which has to happen
before NumPy loads, and tells the C library to keep memory, which has to happen before the first
large array.
"""

from numgpt.runtime import kernels  # first: this import chooses the kernels and then loads NumPy
from numgpt.runtime.accumulator import NOWHERE, Accumulator, SumsSideBySide
from numgpt.runtime.blocks import add_into, mean_product, over_row_blocks, sum_rows
from numgpt.runtime.fewer_bits import DTYPES
from numgpt.runtime.kernels import physical_memory
from numgpt.runtime.memory import ALLOCATOR
from numgpt.runtime.products import add_matmul, matmul
from numgpt.runtime.rounded import Rounded, multiplies_rounded, read_by, rounded_weight
from numgpt.runtime.scratch import empty, empty_like
from numgpt.runtime.stored_rows import FewerBits
from numgpt.runtime.threads import (
    num_threads,
    parallel_for,
    set_num_threads,
    single_thread_if_small,
    worthwhile_threads,
)
from numgpt.runtime.weights import SideBySide, Weight

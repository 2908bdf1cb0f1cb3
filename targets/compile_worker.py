"""`python -m bitsmith.targets.compile_worker PARENT`: compiles kernels beside the process that started it.

See objects.py.
"""

import sys

from .objects import worker

if __name__ == "__main__":
    worker(int(sys.argv[1]))

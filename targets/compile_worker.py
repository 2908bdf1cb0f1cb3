"""`python -m bitsmith.targets.compile_worker`: compiles kernels beside the process that started it.

See objects.py.
"""

from .objects import worker

if __name__ == "__main__":
    worker()

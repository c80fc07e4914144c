"""The long forms of the tests, as commands with a count. One thread each, as in conftest.py."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported anywhere
    os.environ[variable] = "1"

"""`make gpu`: every check and benchmark that needs a GPU, in one visit of at most nine minutes. See `visit.py`."""

import sys

from infra.bench.gpu.visit import main

if __name__ == "__main__":
    sys.exit(main())

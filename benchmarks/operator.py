"""The operator under load: `python benchmarks/operator.py [--idle N] [--active N] [--json FILE]`.

A real API server with etcd and controllers, a real object store, monitor and proxy; pods run in
name. The variable CLUSTER names the command that starts the cluster. Ten minutes on two cores.
"""

import sys

if __name__ == "__main__":
    from operator_run import main

    sys.exit(main())

# Python looks here first, and somebody means the standard library's `operator`: it is handed over.
# Its name has to be free meanwhile; what is imported in the end is what stands under it.
_path = sys.path[:]
sys.path[:] = [one for one in _path if one != __file__.rpartition("/")[0]]
del sys.modules[__name__]
import operator  # noqa: E402, F401  the real one

sys.path[:] = _path

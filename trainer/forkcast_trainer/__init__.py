"""The trainer: the main run, and rollouts of it."""

import os
import pwd

# A cluster may run a pod as a user id that has no name. torch before 2.13 calls its caches by the
# user's name, and fails without one; getpass takes this variable for it.
try:
    pwd.getpwuid(os.getuid())
except KeyError:
    os.environ.setdefault("LOGNAME", str(os.getuid()))

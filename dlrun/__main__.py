"""`python -m dlrun`, the same program as `dlrun`."""

import os
import sys

from dlrun.cli import main

# -m puts the current folder first, and a numpy.py there would run; dlrun itself may be imported from there
if sys.path[0] in ("", os.getcwd()) and not os.path.samefile(os.path.dirname(os.path.dirname(__file__)), os.getcwd()):
    del sys.path[0]
main()

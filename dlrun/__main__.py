"""`python -m dlrun`, the same program as `dlrun`."""

from dlrun.cli import main

main()

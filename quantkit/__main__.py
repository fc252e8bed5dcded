"""`python -m quantkit` is `quantkit`."""

from quantkit.cli import main

main()

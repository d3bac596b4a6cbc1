"""`python -m app` is the `headroom` command."""

from app.cli import main

main()

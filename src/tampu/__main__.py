"""`python -m tampu` is the `tampu` command."""

from tampu.cli.main import main

main()

"""`python -m perdure` is `perdure`, as `torchrun -m perdure` and `accelerate launch -m perdure`."""

from perdure.cli import main


main()

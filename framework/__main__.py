"""`python -m framework ...` is the same as the `framework` command."""

from framework.main import console

console()

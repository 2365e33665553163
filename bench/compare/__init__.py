"""TLS front doors side by side, and what each costs its machine.

Run `make bench`. What is measured and what is not: README.md in the folder above.
"""

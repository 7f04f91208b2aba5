"""The commands of `kdctl`, by what they are for; each is a few lines around one function of the packages below.

Imports everything but `cli`, inside functions, so that `kdctl --help` loads Click alone. Start with `cli`, which lists
them.
"""

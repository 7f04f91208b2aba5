"""The commands of kdctl, one module each; a command is a few lines around one function of the packages below.

Imports everything but `cli`, inside functions, so that `kdctl --help` loads Click alone. What several commands share is
in `shared`. Start with `cli`, which lists the commands.
"""

"""What kdctl needs to know about the computer it runs on: cores and memory, processes, paths and writable folders,
addresses and proxies, standard streams, git commits.

Imports only the base layer. Start with `paths`, which decides how a path from the user is read.
"""

"""What kdctl needs to know of the computer that it runs on: cores and memory, processes, paths and the folders that may
be written, addresses and proxies, standard streams, git.

Imports the base layer alone (`errors`). Start with `paths`, which decides how a path that a person gave is read.
"""

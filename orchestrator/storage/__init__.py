"""The files of a storage, in a folder or a bucket: their names, who may write them (leases), logs, requests to stop.

Imports `machine` and the base layer. Start with `layout`, which knows every file name.
"""

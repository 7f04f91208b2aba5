"""What several commands share: options and questions, completion in shells, colours, the layout of the help, and jobs
on a cluster.

Imports what the commands import, but no command. Start with `options`.
"""

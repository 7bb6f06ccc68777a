"""One command for many nodes: jobs, their runners, the bundles they travel in, and ssh to the nodes themselves.

A job is one node's share of a command. An executor runs jobs in this process, in a process each, or on the workers of a
Dask cluster; its results are the same. Nothing here knows what a job does: the caller gives the function.
"""

"""One command for many nodes: jobs, their runners, the bundles they travel in, and ssh to the nodes themselves.

A job is one node's share of a command. An executor runs jobs in this process, in a process each, or on the workers of a
Dask cluster; the results are the same. The caller gives the function of a job, so this package does not depend on it.
"""

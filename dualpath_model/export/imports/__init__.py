"""The other way: what a deployment already states becomes the skeleton of a scenario.

One module a kind of deployment, each with ``read(path) -> Skeleton``.
"""

"""Server: a page and interfaces over HTTP, on which anybody may draw who is let in.

Knows: jobs, their queue and the worker that draws them, who may ask for what, which forms clients speak.
Does not know: mathematics, networks, training.
"""

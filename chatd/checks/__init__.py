"""What is looked at in a running installation: one table of checks, and what each of them makes of plain facts.

``/health/ready`` asks those of the first cost, ``chatd doctor`` all of them.
"""

"""What server and sites must agree on.

Messages and how they travel as records of Flower, what is compared before the first round, the order of a run's steps.
"""

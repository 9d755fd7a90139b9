"""The table of escalation policies, as it is shipped; a hospital's own file stands beside it, not in it."""

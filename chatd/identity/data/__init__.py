"""The table of roles, commands and departments, as it is shipped."""

"""Who may come in and what they may do: keys, claims, the table of roles, revocations, devices, break-glass."""

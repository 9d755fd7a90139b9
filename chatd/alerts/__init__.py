"""An alert's life: raised, repeated until somebody answers, escalated when nobody does, and known to all."""

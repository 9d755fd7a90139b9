"""The server: what a doctor asks, answered; what happens, carried to every phone that must know."""

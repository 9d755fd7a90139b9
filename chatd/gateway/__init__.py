"""The connections of phones: who they are, what they may send, and what is sent to them."""

"""What both ends of the wire agree on; standard library and msgspec only. ``SPEC.md`` tells it to client authors."""

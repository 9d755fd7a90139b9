"""The protocols that come with chatd, one JSON file each, and the table of words."""

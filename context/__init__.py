"""What chatd knows when it answers, and what a model is told of it: five layers, their store, the prompt.

``layers`` holds the five as frozen Structs; ``seal`` and ``store`` keep them in Redis, sealed; ``compose`` and
``budget`` turn them into a prompt; ``library`` holds the clinical protocols; ``fhir`` and ``feeds`` bring records in.
"""

"""The ledger's tables from revision to revision, in the order of ``versions/``; ``chatd.ledger.migrate`` runs them."""

"""Quick actions: the catalogue's rows as proposals that a person prepares, confirms or dismisses.

``catalogue`` what a department has, ``rules`` the life of an action, ``tokens`` and ``identifiers`` what a confirmation
must bring, ``reasons`` why one is dismissed, ``drafts`` the FHIR R4 resources, ``service`` all of it in the ledger.
Nothing is imported here, so that a command that needs names only does not load the ledger.
"""

"""The clinical protocol library: data files with source and year, and the search over them."""

from context.library.library import (
    Basis,
    Hit,
    Library,
    LibraryError,
    Protocol,
    ProtocolFact,
    Query,
    Section,
)

__all__ = ["Basis", "Hit", "Library", "LibraryError", "Protocol", "ProtocolFact", "Query", "Section"]

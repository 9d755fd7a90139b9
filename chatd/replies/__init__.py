"""One question's way: understood, answered from the record, sent as facts and as one final reply."""

"""The audit: who did what on whom, when and where; rows without content that cannot be changed unseen."""

"""One file for each revision. What has been released is never edited: a change is a further revision."""

"""The report of a day: what the records beside runs and gates say, as one page that loads nothing."""

"""The message catalogues of reports: English stands in the templates and rules, other languages here."""

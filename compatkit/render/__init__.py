"""Report -> what a person or a program reads. No judgement is made here."""

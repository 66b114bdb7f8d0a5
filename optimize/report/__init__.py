"""The report's data model and its views."""
